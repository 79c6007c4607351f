"""The loss of a step: its rows' answers and what prompts ask about themselves, against the plain model, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import reference
import tiny
from reference import assert_close, case
from softprompt.learn.losses import AnswerLoss
from softprompt.learn.objective import Objective
from softprompt.prompts.method import Asked, Parametrization
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Forward

TEMPLATES = ("front", "middle", "behind")
ASKED = ((Asked(0, 7, 0.5), Asked(2, 30, 0.2)), (Asked(1, 42, 0.9),), ())


class Asking(Parametrization):
    """The prompt of each task, and what each asks."""

    def __init__(self, prompts, asks) -> None:
        super().__init__()
        self.prompts = nn.ParameterList([nn.Parameter(p.detach().clone()) for p in prompts])
        self.asks = asks

    def forward(self, task: int = 0) -> VirtualTokens:
        return VirtualTokens(self.prompts[task])

    def asked(self, task: int = 0) -> tuple[Asked, ...]:
        return self.asks[task]

    def after_step(self) -> None:
        pass

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"prompts": list(self.prompts)}


def naive(model, given: reference.Case, asks, prompts) -> Tensor:
    """Each task's mean, by its share of the rows; whatever is asked is read in the first of its rows."""
    total = torch.zeros(())
    for k in sorted(set(given.which)):
        own = [e for e, other in zip(given.examples, given.which, strict=True) if other == k]
        mean = reference.loss(model, reference.Case(tuple(own), (prompts[k],), (0,) * len(own)))
        sequence = reference.embeds(model, own[0].tokens, prompts[k])
        logits = model(inputs_embeds=sequence, use_cache=False).logits[0]
        whole, weight = mean, 1.0
        for ask in asks[k]:
            place = own[0].tokens.index(-1 - ask.behind)
            whole = whole + ask.weight * F.cross_entropy(logits[place], torch.tensor(ask.token))
            weight += ask.weight
        total = total + whole / weight * len(own) / len(given.examples)
    return total


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "bloom"])
def test_it_is_the_weighted_mean_of_rows_and_asked_tokens(family, share):
    backbone = reference.backbone(family)
    given = case(TEMPLATES, backbone)
    parametrization, other = Asking(given.prompts, ASKED), Asking(given.prompts, ASKED)
    objective = Objective(Forward(backbone, share=share), [AnswerLoss()] * 3)
    got = objective(parametrization, list(zip(given.which, given.examples, strict=True)))
    wanted = naive(reference.plain(family), given, ASKED, list(other.prompts))
    assert_close(got, wanted)
    got.backward()
    wanted.backward()
    for mine, theirs in zip(parametrization.prompts, other.prompts, strict=True):
        assert float(theirs.grad.abs().max()) > 0
        assert_close(mine.grad, theirs.grad)


def test_a_step_without_a_tasks_rows_does_not_ask_its_prompt():
    backbone = reference.backbone("llama")
    given = case(TEMPLATES, backbone)
    parametrization = Asking(given.prompts, ASKED)
    own = [(k, e) for k, e in zip(given.which, given.examples, strict=True) if k == 1]
    Objective(Forward(backbone), [AnswerLoss()] * 3)(parametrization, own).backward()
    assert [p.grad is not None and bool(p.grad.any()) for p in parametrization.prompts] == [False, True, False]


def test_tokens_are_asked_among_the_label_words_where_rows_are():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    among, whole = (AnswerLoss(words).tokens(logits, [9, 4]) for words in ((4, 30, 9), None))
    assert_close(among, F.cross_entropy(logits[:, [4, 30, 9]], torch.tensor([2, 0]), reduction="none"))
    assert_close(whole, F.cross_entropy(logits, torch.tensor([9, 4]), reduction="none"))
