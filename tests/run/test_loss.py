from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from softprompt.run.loss import answer_log_probabilities, answer_loss, label_loss
from softprompt.text.batch import IGNORED

# Odds of 1 : 2 : 5 at every position.
LOGITS = torch.tensor([0.0, math.log(2), math.log(5)]).expand(2, 3, 3)
TARGETS = torch.tensor([[IGNORED, 2, 1], [IGNORED, IGNORED, 0]])


def test_the_answer_loss_is_the_mean_over_answer_tokens():
    wanted = -(math.log(5 / 8) + math.log(2 / 8) + math.log(1 / 8)) / 3
    torch.testing.assert_close(answer_loss(LOGITS, TARGETS), torch.tensor(wanted))


def test_the_log_probability_of_an_answer_is_the_sum_over_its_tokens():
    wanted = torch.tensor([math.log(5 / 8) + math.log(2 / 8), math.log(1 / 8)])
    torch.testing.assert_close(answer_log_probabilities(LOGITS, TARGETS), wanted)


def test_the_label_loss_looks_at_label_words_alone():
    wanted = -(math.log(2 / 3) + math.log(1 / 3)) / 2
    found = label_loss(LOGITS, [1, 0], torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_the_label_loss_scores_the_last_position():
    logits = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label_loss(logits, [0, 2], torch.tensor([1, 0])).backward()
    assert bool((logits.grad[:, :-1] == 0).all())
    assert bool((logits.grad[:, -1, [0, 2]] != 0).all())
    assert bool((logits.grad[:, -1, 1] == 0).all())


def test_losses_of_half_precision_are_float32():
    logits = LOGITS.to(torch.bfloat16)
    found = (
        answer_loss(logits, TARGETS),
        answer_log_probabilities(logits, TARGETS),
        label_loss(logits, [1, 0], torch.tensor([0, 1])),
    )
    assert {f.dtype for f in found} == {torch.float32}


def test_what_is_not_predicted_gets_no_gradient():
    logits = LOGITS.clone().requires_grad_()
    answer_loss(logits, TARGETS).backward()
    predicted = TARGETS != IGNORED
    assert bool((logits.grad[~predicted] == 0).all())
    assert bool((logits.grad[predicted] != 0).all())


class LargestFloat32(TorchDispatchMode):
    """The most numbers that any float32 tensor made meanwhile has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("scored", [answer_loss, answer_log_probabilities])
def test_what_is_not_predicted_is_never_made_float32(scored):
    vocabulary = 50
    logits = torch.randn(4, 6, vocabulary, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.full((4, 6), IGNORED)
    targets[:, -1], targets[0, -3:] = 7, 8
    with LargestFloat32() as largest:
        scored(logits, targets).sum().backward()
    assert largest.numbers == 6 * vocabulary


def test_the_label_loss_makes_label_words_alone_float32():
    logits = torch.randn(4, 6, 50, dtype=torch.bfloat16, requires_grad=True)
    with LargestFloat32() as largest:
        label_loss(logits, [3, 7, 9], torch.tensor([0, 1, 2, 0])).backward()
    assert largest.numbers == 4 * 3


@pytest.mark.parametrize("padded", [True, False])
def test_values_and_gradients_are_those_of_the_whole(padded):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 20, generator=generator)
    targets = torch.randint(20, (3, 4), generator=generator)
    if padded:
        targets[0, :3] = targets[1, :1] = IGNORED
    mine, whole = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    each = F.cross_entropy(whole.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    loss, scores = answer_loss(mine, targets), answer_log_probabilities(mine, targets)
    torch.testing.assert_close(loss, each.sum() / (targets != IGNORED).sum())
    torch.testing.assert_close(scores, -each.sum(dim=1))
    weights = torch.tensor([1.0, 2.0, 3.0])
    (loss + scores @ weights).backward()
    (each.sum() / (targets != IGNORED).sum() - each.sum(dim=1) @ weights).backward()
    torch.testing.assert_close(mine.grad, whole.grad)
