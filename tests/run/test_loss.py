from __future__ import annotations

import math

import torch

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
