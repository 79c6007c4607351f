"""Losses of several labels, of spans and of vectors, each against its definition written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from softprompt.run.loss import likeness_loss, odds_loss, span_loss
from softprompt.run.score import best_span
from softprompt.text.answers import BEGINS, ENDS
from softprompt.text.batch import IGNORED


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_the_loss_of_several_labels_is_that_of_each_yes_and_no():
    odds, applies = random(3, 4), torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    each = [
        -math.log(1 / (1 + math.exp(-o if yes else o)))
        for o, yes in zip(odds.flatten().tolist(), applies.flatten().tolist(), strict=True)
    ]
    assert float(odds_loss(odds, applies)) == pytest.approx(sum(each) / 12, rel=1e-5)
    assert odds_loss(odds.bfloat16(), applies).dtype == torch.float32


# `None` where nothing was read; a row of it alone had its answer cut away.
TARGETS = [
    [None, None, 0, BEGINS, 0, ENDS],
    [0, 0, BEGINS + ENDS, 0, 0, 0],
    [None, None, None, None, None, None],
    [None, BEGINS, ENDS, 0, 0, 0],
]


def targets(rows) -> torch.Tensor:
    return torch.tensor([[IGNORED if t is None else t for t in row] for row in rows])


def plain_span_loss(outputs: torch.Tensor, rows) -> float:
    losses = []
    for row, own in zip(outputs, rows, strict=True):
        real = [i for i, t in enumerate(own) if t is not None]
        for column, mark in ((0, BEGINS), (1, ENDS)):
            right = [n for n, i in enumerate(real) if own[i] & mark]
            losses += [-float(row[real, column].log_softmax(0)[n]) for n in right]
    return sum(losses) / len(losses)


def test_the_loss_of_spans_is_that_of_where_they_begin_and_end():
    outputs = random(4, 6, 2)
    assert float(span_loss(outputs, targets(TARGETS))) == pytest.approx(plain_span_loss(outputs, TARGETS), rel=1e-5)
    assert float(span_loss(outputs.half(), targets(TARGETS))) == pytest.approx(
        plain_span_loss(outputs, TARGETS), rel=1e-2
    )


def test_padding_and_rows_without_an_answer_get_no_gradient():
    outputs = random(4, 6, 2).requires_grad_()
    span_loss(outputs, targets(TARGETS)).backward()
    for gradient, row in zip(outputs.grad, TARGETS, strict=True):
        learned = any(t is not None and t & ENDS for t in row)
        assert [bool(g.any()) for g in gradient] == [learned and t is not None for t in row]
    assert bool(torch.isfinite(outputs.grad).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_of_rows_without_answers_has_no_loss_and_no_gradient(dtype):
    outputs = random(3, 5, 2).to(dtype).requires_grad_()
    loss = span_loss(outputs, targets([[None] * 5] * 3))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(outputs.grad, torch.zeros_like(outputs))


@pytest.mark.parametrize("length", [1, 2, 7])
def test_the_best_span_is_the_best_of_all(length):
    for seed in range(10):
        outputs = random(length, 2, seed=seed)
        begins, ends = outputs.softmax(dim=0).double().unbind(1)
        table = {(a, b): float(begins[a] * ends[b]) for a in range(length) for b in range(a, length)}
        best = max(table, key=table.get)
        first, last, likely = best_span(outputs)
        assert (first, last) == best
        assert likely == pytest.approx(table[best] / sum(table.values()), rel=1e-4)


def test_a_span_never_ends_before_it_begins():
    first, last, likely = best_span(torch.tensor([[0.0, 9.0], [0.0, 0.0], [9.0, 0.0]]))
    assert first <= last
    assert 0 < likely < 1


def plain_likeness_loss(vectors: torch.Tensor, groups: list[int], temperature: float) -> float:
    """Equation 2 of the paper, row by row."""
    losses = []
    cosine = F.cosine_similarity(vectors[:, None], vectors[None], dim=-1).double() / temperature
    for i, own in enumerate(groups):
        fellows = [j for j, other in enumerate(groups) if other == own and j != i]
        if not fellows:
            continue
        total = sum(math.exp(float(cosine[i, k])) for k in range(len(groups)) if k != i)
        losses.append(-sum(math.log(math.exp(float(cosine[i, j])) / total) for j in fellows) / len(fellows))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("groups", [[5, 5, 5, 5], [1, 2, 1, 2], [7, 8, 8, 9], [2**55, 2**55, 2**55 + 1, 2**55 + 1]])
def test_the_loss_of_vectors_is_that_of_the_paper(groups):
    vectors = random(4, 6)
    for temperature in (0.05, 1.0):
        found = float(likeness_loss(vectors, torch.tensor(groups), temperature))
        assert found == pytest.approx(plain_likeness_loss(vectors, groups, temperature), rel=1e-4)


def test_rows_without_a_fellow_have_no_loss():
    vectors = random(3, 4).requires_grad_()
    loss = likeness_loss(vectors, torch.tensor([1, 2, 3]))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not bool(vectors.grad.any())
    assert float(likeness_loss(random(1, 4), torch.tensor([1]))) == 0


def test_gradients_of_vectors_are_finite():
    vectors = random(5, 4).requires_grad_()
    likeness_loss(vectors, torch.tensor([1, 1, 2, 2, 3])).backward()
    assert bool(torch.isfinite(vectors.grad).all())
    assert bool(vectors.grad.any(dim=1).all())
