from __future__ import annotations

import pytest

import reference
from softprompt import artifact, collection
from softprompt.answer.engine import Engine
from softprompt.answer.library import Library
from softprompt.collection import SavedPrompts
from softprompt.errors import ArtifactError, SettingsError, UnknownPromptError
from toys import TOPICS, prompt

NAMES = ("a", "b", "c")
ROW = {"text": "the team won"}


@pytest.fixture
def folders(tmp_path):
    backbone = reference.backbone("llama")
    for seed, name in enumerate(NAMES):
        artifact.save(prompt(backbone, TOPICS, seed=seed), tmp_path / name)
    return tmp_path


def size(folders, compiled: bool = True) -> int:
    """What one prompt takes."""
    library = Engine(reference.backbone("llama"))
    library.add("a", folders / "a")
    if compiled:
        library.classify([("a", ROW)])
    return library._library.nbytes


def test_what_was_not_asked_for_longest_is_put_away_and_comes_back(folders):
    one = size(folders)
    assert one > size(folders, compiled=False)
    whole, small = Engine(reference.backbone("llama")), Engine(reference.backbone("llama"), memory=2 * one)
    for engine in (whole, small):
        for name in NAMES:
            engine.add(name, folders / name)
    # "a" is asked again before "c" needs room, so "b" leaves.
    for name, there in (("a", None), ("b", None), ("a", None), ("c", {"a", "c"}), ("b", {"b", "c"})):
        (wanted,), (found,) = whole.classify([(name, ROW)]), small.classify([(name, ROW)])
        assert found.probabilities == pytest.approx(wanted.probabilities, abs=1e-6)
        if there is not None:
            assert set(small.prompts) == there
        assert small._library.nbytes <= 2 * one
    assert set(whole.prompts) == set(NAMES)


def test_all_that_one_call_asks_is_answered_whatever_there_is_room_for(folders):
    engine = Engine(reference.backbone("llama"), memory=1)
    for name in NAMES:
        engine.add(name, folders / name)
    found = engine.classify([(name, ROW) for name in NAMES])
    assert len({tuple(answer.probabilities.values()) for answer in found}) == 3
    assert len(engine.prompts) == 1


def test_what_was_handed_over_keeps_its_values(folders):
    backbone = reference.backbone("llama")
    engine = Engine(backbone, memory=1)
    together = SavedPrompts("ensemble", {str(s): prompt(backbone, TOPICS, seed=s) for s in range(2)})
    engine.add("one", prompt(backbone, TOPICS, seed=7))
    engine.add("several", together)
    engine.add("a", folders / "a")
    before = engine.classify([("one", ROW), ("several", ROW)])
    engine.classify([("a", ROW)])
    assert set(engine.prompts) == {"one", "several", "a"}
    assert not engine._library.entry("one").compiled
    assert engine.classify([("one", ROW), ("several", ROW)]) == before


def test_another_prompt_in_the_folder_is_not_taken_for_the_one_that_was(folders):
    backbone = reference.backbone("llama")
    library = Library(backbone, budget=1)
    for name in NAMES:
        library.add(name, folders / name)
    artifact.save(prompt(backbone, TOPICS, seed=9), folders / "a", overwrite=True)
    with pytest.raises(ArtifactError, match="written anew"):
        library.entry("a")
    library.add("a", folders / "a", replace=True)
    assert library.entry("a").prompt.values.embeddings.equal(artifact.load(folders / "a").values.embeddings)


def test_an_ensemble_is_loaded_again_whole(tmp_path, folders):
    backbone = reference.backbone("llama")
    together = SavedPrompts("ensemble", {str(s): prompt(backbone, TOPICS, seed=s) for s in range(2)})
    collection.save_all(together, tmp_path / "together")
    library = Library(backbone, budget=1)
    library.add("together", tmp_path / "together")
    library.add("a", folders / "a")
    assert "together" not in library.prompts
    assert len(library.entry("together").members) == 2


def test_what_cannot_be_taken_in_changes_nothing(folders):
    library = Library(reference.backbone("llama"))
    library.add("a", folders / "a")
    for refused, ask in (
        (SettingsError, lambda: library.add("a", folders / "b")),
        (SettingsError, lambda: library.add("", folders / "b")),
        (ArtifactError, lambda: library.add("a", folders / "nowhere", replace=True)),
        (UnknownPromptError, lambda: library.remove("b")),
        (UnknownPromptError, lambda: library.entry("b")),
        (SettingsError, lambda: Library(reference.backbone("llama"), budget=0)),
    ):
        with pytest.raises(refused):
            ask()
    assert list(library.folders) == ["a"]
