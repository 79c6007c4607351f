from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

import reference
import tiny
from reference import TEMPLATES, Case, case
from softprompt.backbone.backbone import Backbone
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.run.live import KeptRows, Live, RepeatedRows, live
from softprompt.run.maker import example_maker
from softprompt.text.examples import Example
from softprompt.text.task import Task

# Longer than the sliding windows.
LENGTH = 10
NAMES = tuple(TEMPLATES)


def unanswered(backbone: Backbone) -> Case:
    given = case(NAMES, backbone)
    return replace(given, examples=tuple(replace(e, target=()) for e in given.examples))


@cache
def wanted(family: str) -> list[list[int]]:
    """Each row alone with the prompt in its sequence, by the plain model; its last token is that of the end."""
    model, given = reference.plain(family), unanswered(reference.backbone(family))
    alone = [
        reference.generate(model, example, prompt, max_new_tokens=LENGTH, do_sample=False)
        for example, prompt in given.alone()
    ]
    return [ids if len(ids) == LENGTH else [*ids, model.config.eos_token_id] for ids in alone]


def written(
    rows: Live, examples: Sequence[Example], fillings: Sequence[Filling], which: Sequence[int], end: int, seed: int
) -> list[list[int]]:
    """What is written greedily where rows come a few at a time, while others are being written."""
    chance = random.Random(seed)
    answers: list[list[int]] = [[] for _ in examples]
    there: list[int] = []
    coming = list(range(len(examples)))
    chance.shuffle(coming)

    def write(numbers: Sequence[int], logits: torch.Tensor) -> None:
        assert logits.shape[0] == len(numbers)
        for number, token in zip(numbers, logits.argmax(dim=-1).tolist(), strict=True):
            answers[number].append(token)
        for place in reversed(range(len(there))):
            if len(answers[there[place]]) == LENGTH or answers[there[place]][-1] == end:
                rows.leave(place)
                there[place] = there[-1]
                there.pop()
        assert len(rows) == len(there)

    while coming or there:
        if there:
            write(list(there), rows.step([answers[number][-1] for number in there]))
        new = coming[: chance.randint(0, 4)]
        coming = coming[len(new) :]
        if new:
            logits = rows.begin([examples[n] for n in new], fillings, [which[n] for n in new], [1] * len(new))
            there += new
            write(new, logits)
    return answers


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_that_come_and_go_are_written_as_each_alone(family: str, seed: int):
    backbone = reference.backbone(family)
    given, rows = unanswered(backbone), live(Forward(backbone))
    assert isinstance(rows, KeptRows)
    found = written(rows, given.examples, given.fillings, given.which, 1, seed)
    assert found == wanted(family)
    assert len({tuple(ids) for ids in found}) > 5


@pytest.mark.parametrize("family", ["llama", "bloom", "falcon", "mamba"])
def test_where_nothing_can_be_kept_it_is_run_again(family: str):
    backbone = reference.backbone(family)
    given = unanswered(backbone)
    rows = live(Forward(backbone)) if family != "llama" else RepeatedRows(Forward(backbone, share=False))
    assert isinstance(rows, RepeatedRows)
    assert written(rows, given.examples, given.fillings, given.which, 1, 0) == wanted(family)


def test_a_prefix_is_seen_from_everywhere():
    # The window is shorter than what is written.
    backbone, model = reference.backbone("gemma3"), reference.plain("gemma3")
    prefix = reference.random_prefix(backbone)
    given = unanswered(backbone)
    front = [e for e in given.examples if min(e.tokens[:3]) < 0 and len(e.tokens) > 3 and min(e.tokens[3:]) >= 0]
    assert len(front) >= 3

    def alone(example: Example) -> list[int]:
        tokens: list[int] = []
        with reference.prefixed(model, prefix):
            for _ in range(LENGTH):
                _, logits = reference.answer(model, backbone, replace(example, tokens=(*example.tokens, *tokens)))
                tokens.append(int(logits[-1].argmax()))
        return tokens

    rows = KeptRows(Forward(backbone))
    fillings = [Filling(prefix, {})]
    found = written(rows, front, fillings, [0] * len(front), -1, 0)
    assert found == [alone(example) for example in front]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_writes_beside_others_as_alone(family: str):
    backbone = reference.backbone(family)
    templates = ("{soft:3}Article: {text}{label}", "{text}{soft:2}{label}")
    maker_of = [example_maker(backbone, Task(template)) for template in templates]
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randn(m.virtual, backbone.hidden_size, generator=generator) for m in maker_of]
    pairs = [(k, m(row, answered=False)) for row in reference.ROWS for k, m in enumerate(maker_of)]
    examples, which = [e for _, e in pairs], [k for k, _ in pairs]
    fillings = [Filling(VirtualTokens(prompt), {}) for prompt in prompts]
    found = written(live(Forward(backbone)), examples, fillings, which, -1, 0)
    model = reference.plain(family)
    for (k, example), answer in zip(pairs, found, strict=True):
        tokens: list[int] = []
        for _ in range(LENGTH):
            asked = replace(example, target=(*tokens, 0))
            _, logits = reference.answer(model, backbone, asked, prompts[k])
            tokens.append(int(logits[-1].argmax()))
        assert answer == tokens


def test_several_answers_to_a_row_read_it_once():
    backbone = reference.backbone("llama")
    given = unanswered(backbone)
    alone, together = KeptRows(Forward(backbone)), KeptRows(Forward(backbone))
    alone.begin(given.examples[:2], given.fillings, given.which[:2], [1, 1])
    with reference.inputs_of(reference.first_site(backbone)) as seen:
        logits = together.begin(given.examples[:2], given.fillings, given.which[:2], [3, 2])
    assert max(len(tokens) for tokens in seen) <= 2
    assert torch.equal(logits, logits[[0, 0, 0, 3, 3]])
    beside = together.step([5, 6, 7, 5, 6])
    reference.assert_close(beside[[0, 3]], alone.step([5, 5]))
    assert not torch.allclose(beside[0], beside[1])


def test_what_has_left_holds_no_memory():
    backbone = reference.backbone("llama")
    given, rows = unanswered(backbone), KeptRows(Forward(backbone))
    rows.begin(given.examples[:3], given.fillings, given.which[:3], [1, 1, 1])
    for _ in range(3):
        rows.leave(0)
    assert len(rows) == 0
    assert not rows._keys
