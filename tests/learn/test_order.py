from __future__ import annotations

import random

import pytest

import tiny
import toys
from softprompt import PromptTuning, Task
from softprompt.errors import SettingsError
from softprompt.learn.order import Shuffled

LENGTHS = [length % 97 + 1 for length in random.Random(7).choices(range(1000), k=230)]
SIZE = 16


def grouped(seed: int = 0) -> Shuffled[int]:
    return Shuffled(list(range(len(LENGTHS))), SIZE, seed, LENGTHS.__getitem__)


def padding(steps) -> int:
    return sum(len(step) * max(LENGTHS[i] for i in step) - sum(LENGTHS[i] for i in step) for step in steps)


def test_rows_of_like_length_stand_in_one_step():
    plain = Shuffled(list(range(len(LENGTHS))), SIZE, 0)
    epochs = 5 * len(LENGTHS) // SIZE
    apart, together = (padding(order(step) for step in range(epochs)) for order in (plain, grouped()))
    assert together < apart / 3


def test_every_epoch_has_every_row_once_in_an_order_of_its_own():
    order = grouped()
    epochs = [order.take(epoch * len(LENGTHS), len(LENGTHS)) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(len(LENGTHS))) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert grouped()(20) == order(20)
    assert grouped(seed=1)(20) != order(20)
    # The longest are not always first.
    assert len({max(range(14), key=lambda step: LENGTHS[order(e * 14 + step)[0]]) for e in range(6)}) > 1


def test_answers_count_with_their_rows():
    # Texts of one length, answers of many: rows are as long as both together.
    words = ["won", *(" ".join(["the market fell"] * times) for times in (3, 6, 9))]
    rows = [{"text": "the team", "label": word} for word in words * 8]
    task = Task("{soft:3}{text} {label}")
    apart, together = (
        toys.learn(tiny.backbone(), task, rows, None, PromptTuning(), steps=16, group_by_length=group).prompt
        for group in (False, True)
    )
    assert together.training["padding"] < apart.training["padding"] / 2


def test_a_training_of_such_steps_has_less_padding():
    task = Task("{soft:3}{text}\nTopic: {label}", toys.LABELS)
    rows = [{"text": "won " * (1 + 5 * (i % 4)), "label": toys.LABELS[i % 2]} for i in range(32)]
    apart, together = (
        toys.learn(tiny.backbone(), task, rows, None, PromptTuning(), steps=8, group_by_length=by).prompt
        for by in (False, True)
    )
    assert 0 <= together.training["padding"] < apart.training["padding"] / 2
    assert together.training["group_by_length"] is True


def test_several_tasks_are_not_grouped():
    with pytest.raises(SettingsError, match="group_by_length: a step of several tasks"):
        toys.learn_together(group_by_length=True)
    with pytest.raises(SettingsError, match="group_by_length is 'yes'"):
        toys.learn(group_by_length="yes")
