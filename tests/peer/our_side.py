"""Our prompts on tiny models, and the plain model's answers to one row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import reference
from reference import assert_close
from softprompt.backbone.backbone import Backbone
from softprompt.prompts.prompt import Prefix, Values, VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.text.examples import Example
from softprompt.text.task import Task
from toys import LABELS, ROWS

TOKENS = 3

WRITING = Task("{soft:3}Article: {text}\nTopic: {label}")
READING = Task("{soft:3}Article: {text}", LABELS, kind="sequence-classification")


def examples(backbone: Backbone, task: Task, *, prefix: bool = False, answered: bool = True) -> list[Example]:
    """Rows of different lengths."""
    if prefix:
        task = task.with_template(task.template.with_start_behind_front_slot())
    maker = example_maker(backbone, task)
    return [maker(row, answered=answered) for row in ROWS]


def virtual_tokens(backbone: Backbone, seed: int = 3) -> VirtualTokens:
    generator = torch.Generator().manual_seed(seed)
    return VirtualTokens(
        torch.randn(TOKENS, backbone.hidden_size, generator=generator) * float(backbone.embeddings.std())
    )


def random_values(kind: str, backbone: Backbone, seed: int = 3) -> Values:
    """A prompt at the input ("tokens") or inside the attention ("prefix")."""
    make = {"tokens": virtual_tokens, "prefix": lambda b, s: reference.random_prefix(b, TOKENS, seed=s)}
    return make[kind](backbone, seed)


@torch.no_grad()
def assert_a_batch_equals_each_row_alone(backbone: Backbone, model: Any, task: Task, values: Values) -> None:
    """States (and logits where there are some) of rows of different lengths against the plain `model`, row by row."""
    rows = examples(backbone, task, prefix=isinstance(values, Prefix))
    assert len({len(e.tokens) for e in rows}) > 2
    answers = Forward(backbone).answers(rows, [Filling(values)])
    for i, example in enumerate(rows):
        states, logits = alone(backbone, model, example, values)
        first = answers.states.shape[1] - max(1, len(example.target))
        assert_close(answers.states[i, first : first + len(states)], states)
        if logits is not None and answers.logits is not None:
            assert_close(answers.logits[i, first : first + len(states)], logits)


def alone(backbone: Backbone, model: Any, example: Example, values: Values) -> Any:
    """What the plain model says to one row."""
    if values.at_input is not None:
        return reference.answer(model, backbone, example, values.at_input)
    assert isinstance(values, Prefix)
    with reference.prefixed(model, values):
        return reference.answer(model, backbone, example)


def entered(backbone: Backbone, values: Values, rows: Sequence[Example]) -> Any:
    """A batch as the model takes it."""
    with torch.no_grad():
        return Forward(backbone).prepare(rows, [Filling(values)])
