"""Tokens of a prompt that the model itself must predict: as the plain model does with the prompt in a row."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import reference
import tiny
from reference import ROWS, assert_close, case
from softprompt.run.forward import Filling, Forward

# Asked in an order of their own, one of them twice; a prompt behind hard text; one that asks nothing; one behind texts.
TEMPLATES = ("front", "middle", "two", "behind")
ASKED = ((2, 0, 2), (1,), (), ())
TOKENS = ((7, 30, 11), (42,), (), ())

every_family = pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.UNROUTED])


@dataclass(frozen=True)
class Asking:
    """A case, and for each of its prompts the virtual tokens behind which something is asked."""

    case: reference.Case
    asked: tuple[tuple[int, ...], ...]

    def leaves(self) -> Asking:
        return replace(self, case=self.case.leaves())

    @property
    def fillings(self) -> list[Filling]:
        return [replace(f, asked=a) for f, a in zip(self.case.fillings, self.asked, strict=True)]


def asking(backbone, templates=TEMPLATES, asked=ASKED, rows=ROWS) -> Asking:
    return Asking(case(templates, backbone, rows=rows), asked)


def in_sequence(model, given: Asking, k: int) -> Tensor:
    """`[A, V]`: the plain model's logits behind the virtual tokens that prompt k asks about, in one of its rows."""
    example = next(e for e, own in zip(given.case.examples, given.case.which, strict=True) if own == k)
    sequence = reference.embeds(model, example.tokens, given.case.prompts[k])
    return model(inputs_embeds=sequence, use_cache=False).logits[
        0, [example.tokens.index(-1 - v) for v in given.asked[k]]
    ]


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@every_family
def test_what_is_asked_is_answered_as_in_the_sequence_of_a_row(family, share):
    backbone, model = reference.backbone(family), reference.plain(family)
    ours, theirs = asking(backbone).leaves(), asking(backbone).leaves()
    answers = Forward(backbone, share=share).answers(ours.case.examples, ours.fillings, ours.case.which)
    assert [len(logits) for logits in answers.asked] == [3, 1, 0, 0]
    losses = []
    for k in (0, 1):
        wanted, tokens = in_sequence(model, theirs, k), torch.tensor(TOKENS[k])
        assert_close(answers.asked[k], wanted)
        losses.append([F.cross_entropy(logits, tokens, reduction="sum") for logits in (answers.asked[k], wanted)])
    for mine, other in losses:
        mine.backward(retain_graph=True)
        other.backward()
    for k in (0, 1):
        assert float(theirs.case.prompts[k].grad.abs().max()) > 0
        assert_close(ours.case.prompts[k].grad, theirs.case.prompts[k].grad)
    assert ours.case.prompts[2].grad is None or not bool(ours.case.prompts[2].grad.any())


@every_family
def test_the_rows_answers_are_those_without_a_question(family):
    backbone = reference.backbone(family)
    given = asking(backbone)
    forward = Forward(backbone)
    logits, targets = forward(given.case.examples, given.fillings, given.case.which)
    plain, same = forward(given.case.examples, given.case.fillings, given.case.which)
    assert torch.equal(targets, same)
    assert_close(logits, plain)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_each_prompt_is_answered_alone_as_in_a_mixed_batch(family):
    backbone = reference.backbone(family)
    given = asking(backbone)
    together = Forward(backbone).answers(given.case.examples, given.fillings, given.case.which).asked
    for k in (0, 1):
        own = [e for e, other in zip(given.case.examples, given.case.which, strict=True) if other == k]
        (alone,) = Forward(backbone).answers(own, [given.fillings[k]]).asked
        assert_close(together[k], alone)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_recomputed_layers_give_the_same_gradients(family):
    found = []
    for backbone in (reference.backbone(family), tiny.backbone(family, gradient_checkpointing=True)):
        given = asking(backbone).leaves()
        answers = Forward(backbone).answers(given.case.examples, given.fillings, given.case.which)
        F.cross_entropy(answers.asked[0], torch.tensor(TOKENS[0])).backward()
        found.append(given.case.prompts[0].grad)
    assert_close(found[1], found[0], 1e-6)


def positions(backbone, given: Asking, *, share: bool = True) -> tuple[int, int]:
    """How many positions one call computes, and how many go through the head."""
    head = backbone.model.get_output_embeddings()
    with (
        torch.no_grad(),
        reference.inputs_of(reference.first_site(backbone)) as seen,
        reference.inputs_of(head) as read,
    ):
        Forward(backbone, share=share).answers(given.case.examples, given.fillings, given.case.which)
    return tuple(sum(s.shape[0] * s.shape[1] for s in inputs) for inputs in (seen, read))


@pytest.mark.parametrize("rows", [1, 4])
def test_asking_computes_nothing_more_and_reads_what_is_asked_alone(rows):
    backbone = reference.backbone("llama")
    # Of one length and one answer's, so that nothing is padded.
    same = [{"text": "won", "label": label} for label in "xyzw"[:rows]]
    given = asking(backbone, ("front",), ((0, 2),), same)
    example = given.case.examples[0]
    shared, row = example.field_at, len(example.tokens) - example.field_at + len(example.target) - 1
    computed, read = positions(backbone, given)
    assert computed == positions(backbone, replace(given, asked=((),)))[0] == shared + rows * row
    assert read == 2 + rows * len(example.target)


@pytest.mark.parametrize("rows", [1, 4])
def test_where_nothing_is_shared_a_prompt_that_asks_is_run_once_more(rows):
    backbone = reference.backbone("llama")
    same = [{"text": "won", "label": label} for label in "xyzw"[:rows]]
    given = asking(backbone, ("middle",), ((0, 3),), same)
    prompt_end = given.case.examples[0].tokens.index(-4) + 1
    computed, _ = positions(backbone, given, share=False)
    assert computed == positions(backbone, replace(given, asked=((),)), share=False)[0] + prompt_end
