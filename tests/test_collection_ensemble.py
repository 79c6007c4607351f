"""An ensemble of prompts that were each trained by themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import reference
import tiny
from softprompt import artifact, ensemble
from softprompt.answer.engine import Engine
from softprompt.collection import load_all, save_all
from softprompt.errors import ArtifactError, SettingsError
from softprompt.learn.evaluation import evaluate
from softprompt.prompts import PrefixTuning
from softprompt.run.vote import choice
from softprompt.text.task import Task
from toys import BEHIND, LABELS, ROWS, TONES, TOPICS, prompt


@pytest.fixture
def folders(tmp_path):
    """Two prompts in front and one behind, the first and the last in folders that are called alike."""
    backbone = reference.backbone("llama")
    tasks = {"one/topic": TOPICS, "other": TOPICS, "two/topic": Task(BEHIND, LABELS)}
    return [
        artifact.save(prompt(backbone, task, seed=seed), tmp_path / name)
        for seed, (name, task) in enumerate(tasks.items())
    ]


def test_they_vote_as_prompts_that_were_trained_together(folders, tmp_path):
    backbone, engine = reference.backbone("llama"), Engine(reference.backbone("llama"))
    made = ensemble(folders)
    assert list(made.members) == ["topic", "other", "topic-2"]
    engine.add("all", made)
    for name, folder in zip(made.members, folders, strict=True):
        engine.add(name, folder)
    for by in ("vote", "mean"):
        for row in ROWS:
            (answer,) = engine.classify([("all", row)], by=by)
            alone = engine.classify([(name, row) for name in made.members])
            each = torch.tensor([[list(a.probabilities.values())] for a in alone], dtype=torch.float64)
            assert answer.label == LABELS[int(choice(each.log(), by)[0])]
            assert list(answer.probabilities.values()) == pytest.approx(each.mean(dim=0)[0].tolist(), rel=1e-4)
    # On disk it is an ensemble like any other.
    saved = load_all(save_all(made, tmp_path / "all"), backbone)
    assert evaluate(backbone, saved, ROWS, progress=False) == evaluate(backbone, made, ROWS, progress=False)


def test_prompts_in_memory_have_the_names_they_are_given_or_numbers():
    some = [prompt(reference.backbone("llama"), seed=seed) for seed in (0, 1)]
    assert list(ensemble({"a": some[0], "b": some[1]}).members) == ["a", "b"]
    assert list(ensemble(some).members) == ["prompt", "prompt-2"]


def test_what_does_not_go_together_is_refused_by_name(folders):
    backbone = reference.backbone("llama")
    one = prompt(backbone)
    for other, what in (
        (prompt(tiny.backbone(seed=1)), "backbone"),
        (replace(one, tokenizer_fingerprint="x"), "tokenizer"),
        (prompt(backbone, TONES), "list of labels"),
        (prompt(backbone, Task(TOPICS.template, LABELS[::-1])), "list of labels"),
        (prompt(backbone, Task("{text}{soft:4}", LABELS, kind="sequence-classification")), "kind of task"),
    ):
        with pytest.raises(ArtifactError, match=f"do not have one {what}: .* in 'odd', .* in 'one'. Put together"):
            ensemble({"one": one, "two": replace(one), "odd": other})
    for few in ([], [one], {"a": one}, str(folders[0]), one):
        with pytest.raises(SettingsError, match="takes two prompts or more"):
            ensemble(few)
    with pytest.raises(ArtifactError, match="nowhere: there is no such folder"):
        ensemble([folders[0], folders[0].parent / "nowhere"])
    together = save_all(ensemble(folders), folders[1].with_name("all"))
    with pytest.raises(ArtifactError, match="several prompts, each in a folder"):
        ensemble([folders[0], together])


def test_methods_may_differ():
    backbone = reference.backbone("llama")
    task = Task("{soft:3}{bos}Article: {text}\nTopic: {label}", LABELS)
    inside = replace(prompt(backbone, task), method=PrefixTuning(tokens=3), values=reference.random_prefix(backbone, 3))
    engine = Engine(backbone)
    engine.add("all", ensemble([inside, prompt(backbone)]))
    assert engine.classify([("all", ROWS[0])])[0].label in LABELS
