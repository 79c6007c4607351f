"""What a run writes down of itself."""

from __future__ import annotations

import pytest

import tiny
from softprompt.learn.sources import Source
from softprompt.prompts import MultitaskPromptTuning, PrefixTuning, PTuning
from softprompt.text.task import Task
from toys import LABELS, ROWS, learn, learn_ensemble, learn_together, sources

P, D, R = 4, 32, 2


def test_each_task_counts_its_own_and_what_it_shares_and_the_folder_counts_all():
    result = learn_together(method=MultitaskPromptTuning(tokens=P, rank=R), steps=1, distill=0)
    factors = R * (P + D)
    counts = [member.training["trained_parameters"] for member in result.prompts.members.values()]
    assert counts == [P * D + factors] * 2
    assert result.prompts.training["trained_parameters_of_all_tasks"] == P * D + 2 * factors


def test_a_task_counts_the_head_of_its_own_alone():
    head = Task("{text}{soft:4}", [*LABELS, "other"], kind="sequence-classification")
    tasks = sources(measured=False, headed=Source(head, ROWS))
    result = learn_together(tasks=tasks, method=MultitaskPromptTuning(tokens=P), steps=1, distill=0)
    counts = {name: member.training["trained_parameters"] for name, member in result.prompts.members.items()}
    own = P * D + P + D
    assert counts == {"topic": own, "tone": own, "headed": own + 3 * D + 3}
    assert result.prompts.training["trained_parameters_of_all_tasks"] == P * D + 3 * (P + D) + 3 * D + 3


@pytest.mark.parametrize("method", [PTuning(tokens=P), PrefixTuning(tokens=P), MultitaskPromptTuning(tokens=P)])
def test_a_prompt_of_an_ensemble_counts_as_it_would_alone(method):
    backbone = tiny.backbone()
    task = Task("{text}{label}", LABELS)
    alone = learn(backbone, task, method=method, steps=1).prompt.training
    for member in learn_ensemble(backbone, task, method=method, steps=1, seeds=2).prompts.members.values():
        assert member.training["trained_parameters"] == alone["trained_parameters"]
    assert "trained_parameters_of_all_tasks" not in alone
