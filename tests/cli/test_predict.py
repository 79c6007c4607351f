"""`softprompt predict` and `eval` with several prompts, and before weights in fewer bits."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from commands import assert_refused, rows, run
from softprompt import artifact
from softprompt.backbone.backbone import Backbone
from toys import LABELS, ROWS, TONES, TOPICS, WRITING, prompt

FACTS = {"quantized": True, "quantization": "int8"}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a model, rows and prompts."""
    home = tmp_path_factory.mktemp("home")
    tiny.model("llama").save_pretrained(home / "model")
    tiny.tokenizer().save_pretrained(home / "model")
    rows(home / "rows.jsonl", ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        backbone = Backbone.load("model")
        for seed in range(3):
            artifact.save(prompt(backbone, TOPICS, seed=seed), f"p{seed}")
        artifact.save(prompt(backbone, TONES), "tone")
        artifact.save(prompt(backbone, WRITING), "titles")
        artifact.save(replace(prompt(backbone, TOPICS), training=FACTS), "eight")
        artifact.save(replace(prompt(backbone, TOPICS), training={"quantized": False}), "whole")
    return home


@pytest.fixture(autouse=True)
def here(home, monkeypatch) -> None:
    monkeypatch.chdir(home)


def test_prompts_are_asked_together():
    together = ["p0", "--with", "p1", "--with", "p2"]
    answers = run("predict", *together, "--data", "rows.jsonl", "-q", "--json").stdout.splitlines()
    each = [run("predict", f"p{i}", "--data", "rows.jsonl", "-q", "--json").stdout.splitlines() for i in range(3)]
    for answer, *alone in zip(answers, *each, strict=True):
        labels = [json.loads(a)["label"] for a in alone]
        assert json.loads(answer)["label"] == max(labels, key=labels.count)
    metrics = json.loads(run("eval", *together, "--data", "rows.jsonl", "-q", "--json").stdout)["metrics"]
    assert {"accuracy", "member_accuracy", "p0.accuracy", "p1.accuracy", "p2.accuracy"} <= metrics.keys()
    assert run("predict", *together, "text=the team won").stdout.partition(" ")[0] in LABELS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["p0", "--with", "tone"], "do not have one list of labels: .* in 'tone', .* in 'p0'"),
        (["p0", "--with", "nowhere"], "nowhere: there is no such folder"),
        (["titles", "--with", "titles"], "prompts: .titles. stands there twice. Give each prompt once"),
    ],
)
def test_what_cannot_be_asked_together_is_refused_in_one_line(arguments, message):
    assert_refused(run("predict", *arguments, "--text", "x"), message)


@pytest.mark.parametrize("verb", [["predict", "--text", "x"], ["eval", "--data", "rows.jsonl"]])
def test_the_backbone_is_quantized_as_it_was_while_training(monkeypatch, verb):
    asked = []

    def load(name: str, *, quantization: str | None = None, **options) -> Backbone:
        asked.append(quantization)
        return whole(name, **options)

    whole = Backbone.load
    monkeypatch.setattr(Backbone, "load", load)
    name, *options = verb
    for folder in ("eight", "whole", "p0"):
        assert run(name, folder, *options).exit_code == 0
    for given in ("none", "nf4"):
        assert run(name, "eight", *options, "--quantization", given).exit_code == 0
    assert asked == ["int8", None, None, None, "nf4"]


def test_a_library_that_is_missing_is_named_with_the_way_around_it(monkeypatch, caplog):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torchao" else find(name, *a))
    assert_refused(run("predict", "eight", "--text", "x"), "int8 needs torchao.*--quantization none")
    assert run("predict", "eight", "--text", "x", "--quantization", "none").exit_code == 0
    (notice,) = caplog.messages
    assert notice.startswith("eight: it was learned before int8 weights, and those of model are whole")
