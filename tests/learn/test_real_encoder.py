"""The real encoder learns real topics."""

from __future__ import annotations

import math

import pytest
import torch

from softprompt.answer.engine import Engine
from softprompt.demo.news import LABELS, news
from softprompt.learn.evaluation import evaluate
from softprompt.learn.training import train
from softprompt.prompts import PromptTuning
from softprompt.text.task import Task


@pytest.fixture(scope="module")
def articles():
    return news(0, learn=6, choose=0, test=6)


def test_topics_are_learned_by_a_prompt_and_a_head(minilm, articles, tmp_path):
    task = Task("{soft:8}{text}", list(LABELS), kind="sequence-classification", max_length=64)
    rows, held_out = ([article.row for article in part] for part in (articles.learn, articles.test))
    weights = {name: t.clone() for name, t in minilm.model.state_dict().items()}
    options = {"batch_size": 8, "learning_rate": 0.01, "progress": False, "output": tmp_path / "p"}
    result = train(minilm, task, PromptTuning(tokens=8), rows, steps=30, **options)
    assert all(torch.equal(t, weights[name]) for name, t in minilm.model.state_dict().items())
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(5), abs=0.3)
    after = evaluate(minilm, result.prompt, held_out, progress=False)
    assert after["accuracy"] > 0.6
    assert after["loss"] < 1.1
    engine = Engine(minilm)
    engine.add("p", tmp_path / "p")
    answers = engine.classify([("p", row) for row in held_out])
    right = sum(a.label == row["label"] for a, row in zip(answers, held_out, strict=True))
    assert right / len(held_out) == pytest.approx(after["accuracy"])
    alone = [engine.classify([("p", row)])[0] for row in held_out[:3]]
    for one, together in zip(alone, answers, strict=False):
        assert one.label == together.label
        assert one.probabilities == pytest.approx(together.probabilities, abs=1e-4)
