"""Rows of several prompts in one batch."""

from __future__ import annotations

import pytest
import torch

import reference
from peft_side import IDS, adapted, config, fill, last_logits
from softprompt.answer.engine import Engine
from softprompt.prompts import HardPrompt, PrefixTuning, PromptTuning, PTuning
from softprompt.text.task import Task
from toys import LABELS, ROWS, learn

METHODS = {
    "hard": HardPrompt(),
    "short": PromptTuning(tokens=2),
    "long": PromptTuning(tokens=7),
    "p-tuning": PTuning(tokens=3),
    "prefix": PrefixTuning(tokens=5),
}
TASK = Task("Article: {text}\nTopic: {label}", LABELS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_row_is_answered_by_the_prompt_it_names(family):
    backbone = reference.backbone(family)
    engine, singles = Engine(backbone), {}
    for name, method in METHODS.items():
        options = {"steps": 1, "learning_rate": 0.05} if method.LEARNS else {}
        trained = learn(backbone, TASK, method=method, **options).prompt
        engine.add(name, trained)
        singles[name] = Engine(backbone)
        singles[name].add(name, trained)
    requests = [(name, row) for row in ROWS[:3] for name in METHODS]
    found = engine.classify(requests)
    for request, answer in zip(requests, found, strict=True):
        (alone,) = singles[request[0]].classify([request])
        assert answer.probabilities == pytest.approx(alone.probabilities, rel=1e-4)
    assert len({tuple(answer.probabilities.values()) for answer in found[: len(METHODS)]}) == len(METHODS)


@pytest.mark.peer
@torch.no_grad()
def test_peft_answers_all_rows_by_the_active_prompt():
    model = adapted("llama", "prompt")
    model.add_adapter("other", config("prompt"))
    fill(model, 1, "other")
    ids = IDS.expand(2, -1)
    logits = model(ids, attention_mask=torch.ones_like(ids), adapter_names=["default", "other"]).logits[:, -1]
    assert torch.equal(logits[0], logits[1])
    model.set_adapter("other")
    assert (logits[1] - last_logits(model)).abs().max() > 0.1
