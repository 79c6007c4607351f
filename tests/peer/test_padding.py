"""Where a row is padded must not matter."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import reference
import tiny
from our_side import READING, TOKENS, WRITING, assert_a_batch_equals_each_row_alone, entered, examples, random_values
from peft_side import AT_INPUT, IDS, ONES, adapted, last_logits, task_of, with_head
from reference import assert_close
from softprompt.answer.engine import Engine
from softprompt.run.generation import PromptedModel
from toys import ROWS, learn, prompt

PADDING = 4


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The row and its mask, padded."""
    parts = [(torch.full((1, PADDING), 2), torch.zeros(1, PADDING, dtype=torch.long)), (IDS, ONES)]
    ids, mask = zip(*(parts if side == "left" else parts[::-1]), strict=True)
    return torch.cat(ids, dim=1), torch.cat(mask, dim=1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["tokens", "prefix"])
def test_a_row_padded_beside_longer_ones_is_answered_as_alone(family, kind):
    backbone = reference.backbone(family)
    values = random_values(kind, backbone)
    assert_a_batch_equals_each_row_alone(backbone, tiny.model(family), WRITING, values)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_engine_answers_rows_of_different_lengths_as_each_alone(family):
    backbone = reference.backbone(family)
    engine = Engine(backbone)
    engine.add("p", prompt(backbone))
    requests = [("p", row) for row in ROWS]
    together = engine.classify(requests)
    for request, answer in zip(requests, together, strict=True):
        (single,) = engine.classify([request])
        assert answer.probabilities == pytest.approx(single.probabilities, rel=1e-4)
    assert engine.generate(requests, max_new_tokens=4) == [
        engine.generate([request], max_new_tokens=4)[0] for request in requests
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["tokens", "prefix"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_callers_pad_on_either_side(family, kind, side):
    backbone = reference.backbone(family)
    row = examples(backbone, WRITING, prefix=kind == "prefix", answered=False)[0]
    context = entered(backbone, random_values(kind, backbone), [row]).context
    ids, mask = padded(side)
    model = PromptedModel(backbone, context)
    last = mask.long().cumsum(dim=1).argmax(dim=1)
    wanted = model(IDS, attention_mask=ONES).logits[:, -1]
    assert_close(model(ids, attention_mask=mask).logits[:, last[0]], wanted)
    assert_close(backbone.outputs(backbone.embed(ids), mask.bool(), context, at=last[:, None]).logits[:, 0], wanted)


@pytest.mark.peer
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [*AT_INPUT, "prefix"])
def test_peft_answers_a_row_differently_when_it_is_padded_in_front(family, method):
    model = adapted(family, method)
    wanted = last_logits(model, **task_of(method))
    assert (last_logits(model, *padded("left"), **task_of(method)) - wanted).abs().max() > 0.1


def test_a_decoders_head_reads_the_last_token_of_each_row():
    backbone = tiny.backbone("llama")
    trained = learn(backbone, READING, steps=2).prompt
    engine = Engine(backbone)
    engine.add("p", trained)
    found = engine.classify([("p", row) for row in ROWS])
    model, rows = reference.plain("llama"), [e.tokens for e in examples(backbone, READING)]
    assert len({len(tokens) for tokens in rows}) > 2
    for answer, tokens in zip(found, rows, strict=True):
        sequence = reference.embeds(model, tokens, trained.values.at_input)
        wanted = trained.head(model.model(inputs_embeds=sequence).last_hidden_state[0, -1]).softmax(dim=-1)
        assert_close(torch.tensor(list(answer.probabilities.values())), wanted)


@pytest.mark.peer
@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
@torch.no_grad()
def test_peft_reads_another_token_when_a_classified_row_is_padded_behind(method):
    model = adapted(with_head("llama", AutoModelForSequenceClassification), method, "SEQ_CLS")
    ids, mask = padded("right")
    wanted = model(IDS, attention_mask=ONES).logits
    found = model(ids, attention_mask=mask).logits
    assert (found - wanted).abs().max() > 0.1
    # The model looks for the last token that is no padding among the ids, and is given none: it takes the last.
    assert_close(found, every_position(model, ids, mask)[:, -1])
    assert_close(wanted, every_position(model, ids, mask)[:, TOKENS + IDS.shape[1] - 1])


def every_position(model, ids, mask) -> torch.Tensor:
    """What PEFT's classifier makes of each position, virtual ones included."""
    base = model.get_base_model()
    inputs = torch.cat([model.get_prompt(1), base.get_input_embeddings()(ids)], dim=1)
    states = base.model(
        inputs_embeds=inputs, attention_mask=torch.cat([torch.ones(1, TOKENS).long(), mask], dim=1)
    ).last_hidden_state
    return base.score(states)
