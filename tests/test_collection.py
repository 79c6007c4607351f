"""Prompts that belong together, on disk."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import reference
import tiny
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.artifact import COLLECTION, MANIFEST, PROMPT, TRAINING
from softprompt.collection import SavedPrompts, holds_several, load_all, load_any, save_all
from softprompt.errors import ArtifactError, MismatchError, OutputError, SaveError, SettingsError
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task
from toys import FRONT, TOPICS, contents, prompt

MEMBERS = {"topic": TOPICS, "어조-2": Task(FRONT, {"good": "won", "bad": "fell"})}


def prompts(seed: int = 0, kind: str = "sources") -> SavedPrompts:
    backbone = reference.backbone("llama")
    members = {
        name: prompt(backbone, task, seed=seed + number, trained=True)
        for number, (name, task) in enumerate(MEMBERS.items())
    }
    if kind == "ensemble":
        members = {f"seed-{s}": prompt(backbone, seed=s, trained=True) for s in range(3)}
    return SavedPrompts(kind, members, {"steps": 3}, {"accuracy": 0.5})


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_all(prompts(), tmp_path / "sources")


@pytest.mark.parametrize("kind", ["sources", "ensemble"])
def test_what_was_saved_is_loaded_to_the_last_bit(tmp_path, kind):
    saved = prompts(kind=kind)
    loaded = load_all(save_all(saved, tmp_path / "p"), reference.backbone("llama"), training=True)
    assert loaded.kind == kind
    assert list(loaded.members) == list(saved.members)
    assert (loaded.training, loaded.metrics) == ({"steps": 3}, {"accuracy": 0.5})
    assert holds_several(tmp_path / "p")
    again = save_all(loaded, tmp_path / "again" / "p")
    assert contents(again) == contents(tmp_path / "p")


def test_each_member_is_a_prompt_by_itself(folder):
    backbone = reference.backbone("llama")
    engine = Engine(backbone)
    for name, task in MEMBERS.items():
        loaded = artifact.load(folder / name, backbone, training=True)
        assert loaded.task == task
        assert not holds_several(folder / name)
        # A copy elsewhere is one, too: nothing of the folder around it is needed.
        shutil.copytree(folder / name, folder.parent / name)
        engine.add(name, folder.parent / name)
    answers = engine.classify([(name, {"text": "x"}) for name in MEMBERS])
    assert [answer.label in MEMBERS[name].labels for name, answer in zip(MEMBERS, answers, strict=True)] == [True] * 2


def test_the_card_names_the_members(folder):
    text = (folder / "README.md").read_text()
    assert "# sources" in text
    for name in MEMBERS:
        assert f"`{name}`" in text
    assert "softprompt predict sources/topic" in text


def edit(folder: Path, change) -> None:
    manifest = json.loads((folder / COLLECTION).read_text())
    change(manifest)
    (folder / COLLECTION).write_text(json.dumps(manifest))


def exchange(folder: Path) -> None:
    """One member's place is taken by a prompt that is whole, but was not trained with the other."""
    shutil.rmtree(folder / "topic")
    elsewhere = artifact.save(prompt(reference.backbone("llama"), seed=9, trained=True), folder.parent / "elsewhere")
    elsewhere.rename(folder / "topic")


DAMAGES = {
    "no manifest": (lambda f: (f / COLLECTION).unlink(), rf"sources: it has no {COLLECTION}"),
    "empty": (lambda f: (f / COLLECTION).write_text(""), f"{COLLECTION}: it is damaged"),
    "truncated": (lambda f: (f / COLLECTION).write_bytes((f / COLLECTION).read_bytes()[:-9]), "it is damaged"),
    "a list": (lambda f: (f / COLLECTION).write_text("[]"), f"{COLLECTION}: it is wrong"),
    "newer": (lambda f: edit(f, lambda m: m.update(format=2)), r"its format is 2.*Install a newer softprompt"),
    "no kind": (lambda f: edit(f, lambda m: m.pop("kind")), "kind is wrong: Field required"),
    "unknown kind": (lambda f: edit(f, lambda m: m.update(kind="choir")), "kind is wrong"),
    "unknown key": (lambda f: edit(f, lambda m: m.update(extra=1)), "extra is wrong"),
    "unknown key inside": (lambda f: edit(f, lambda m: m["members"]["topic"].update(x=1)), "members.topic.x is wrong"),
    "members of another type": (lambda f: edit(f, lambda m: m.update(members=["topic"])), "members is wrong"),
    "one member alone": (lambda f: edit(f, lambda m: m["members"].pop("topic")), "there is no sources of 1 prompts"),
    "a member outside": (
        lambda f: edit(f, lambda m: m["members"].update({"../topic": m["members"].pop("topic")})),
        "cannot be the name of a folder",
    ),
    "a member missing": (lambda f: shutil.rmtree(f / "topic"), "sources/topic: this member is missing"),
    "a member unknown": (
        lambda f: edit(f, lambda m: m["members"].update(more=m["members"]["topic"])),
        "sources/more: this member is missing",
    ),
    "a member exchanged": (exchange, rf"topic/{MANIFEST}: it is not the prompt that was written here"),
    "a member's values missing": (lambda f: (f / "topic" / PROMPT).unlink(), f"topic/{PROMPT}: the file is missing"),
    "a member's values damaged": (
        lambda f: (f / "topic" / PROMPT).write_bytes(b"\0" * 90),
        f"topic/{PROMPT}: it is damaged",
    ),
    "a member's parameters missing": (
        lambda f: (f / "topic" / TRAINING).unlink(),
        f"topic/{TRAINING}: the file is missing",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_by_name(folder, damage, message):
    load_all(folder, reference.backbone("llama"), training=True)
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as refusal:
        load_all(folder, reference.backbone("llama"), training=True)
    assert str(folder) in str(refusal.value)


def test_an_ensemble_of_several_tasks_is_refused(folder):
    edit(folder, lambda m: m.update(kind="ensemble"))
    with pytest.raises(ArtifactError, match="the prompts of one ensemble do not have one list of labels"):
        load_all(folder)


def test_another_backbone_is_refused_with_the_members_name(folder):
    with pytest.raises(MismatchError, match=r"sources/topic: .*model fingerprint"):
        load_all(folder, tiny.backbone(seed=1))
    mixed = prompts()
    members = dict(mixed.members)
    members["topic"] = replace(members["topic"], backbone_fingerprint="other")
    with pytest.raises(ArtifactError, match="do not have one backbone"):
        replace(mixed, members=members)


def test_one_prompt_and_several_are_told_apart(folder, tmp_path):
    one = artifact.save(prompt(reference.backbone("llama")), tmp_path / "one")
    with pytest.raises(ArtifactError, match=r"sources: it holds several prompts.*Give the folder of one of them"):
        artifact.load(folder)
    with pytest.raises(ArtifactError, match="one: it holds one prompt"):
        load_all(one)
    with pytest.raises(ArtifactError, match="nowhere: there is no such folder"):
        load_all(tmp_path / "nowhere")
    assert isinstance(load_any(folder), SavedPrompts)
    assert isinstance(load_any(one), SavedPrompt)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "prompts.json", "x" * 101, "a.", "\n"])
def test_a_name_that_no_folder_can_have_is_refused(tmp_path, name):
    saved = prompts()
    wrong = replace(saved, members={name: saved.first, "tone": saved.first})
    with pytest.raises(SettingsError, match="cannot be the name of a folder"):
        save_all(wrong, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_names_that_some_systems_cannot_tell_apart_are_refused(tmp_path):
    saved = prompts()
    with pytest.raises(SettingsError, match="stands twice"):
        save_all(replace(saved, members={"Tone": saved.first, "tone": saved.first}), tmp_path / "p")


def test_standing_prompts_are_replaced_whole_and_only_when_told(folder):
    before, other = contents(folder), prompts(seed=5, kind="ensemble")
    with pytest.raises(OutputError, match="prompts stand there"):
        save_all(other, folder)
    assert contents(folder) == before
    save_all(other, folder, overwrite=True)
    assert list(load_all(folder).members) == ["seed-0", "seed-1", "seed-2"]
    assert not (folder / "topic").exists()
    artifact.save(other.first, folder, overwrite=True)
    assert not holds_several(folder)
    save_all(other, folder, overwrite=True)
    assert holds_several(folder)


@pytest.mark.parametrize("place", ["thesis.txt", "more/thesis.txt", "topic/thesis.txt"])
def test_what_somebody_put_beside_the_prompts_is_not_replaced(folder, place):
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text("years of work")
    before = contents(folder)
    with pytest.raises(OutputError, match=r"something other than prompts stands there: (thesis.txt|more|topic)"):
        save_all(prompts(seed=5), folder, overwrite=True)
    assert contents(folder) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_saved_among_prompts_that_belong_together(folder, overwrite):
    before = contents(folder)
    for place in ("topic", "more"):
        with pytest.raises(OutputError, match="holds prompts that belong together"):
            artifact.save(prompts().first, folder / place, overwrite=overwrite)
    assert contents(folder) == before


def test_a_failed_save_leaves_the_old_prompts_whole(folder, monkeypatch):
    before, flush, left = contents(folder), os.fsync, [7]

    def fills_up(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr("os.fsync", fills_up)
    with pytest.raises(SaveError, match="No space left on device"):
        save_all(prompts(seed=5), folder, overwrite=True)
    assert left[0] < 0
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_prompts_that_a_killed_writer_set_aside_are_found_all_and_each(folder):
    wanted = load_all(folder, training=True)
    folder.rename(folder.with_name(f".{folder.name}.replaced"))
    assert load_all(folder, training=True).members.keys() == wanted.members.keys()
    found = artifact.load(folder / "topic")
    assert torch.equal(found.values.embeddings, wanted.members["topic"].values.embeddings)
    # What was set aside is not looked at where the new ones stand.
    save_all(prompts(kind="ensemble"), folder, overwrite=True)
    with pytest.raises(ArtifactError, match="no such folder"):
        artifact.load(folder / "topic")
