from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

import reference
import tiny
from reference import TEMPLATES, case
from softprompt.run.forward import Forward
from softprompt.run.generation import PromptedModel
from softprompt.text.batch import Batch

# Longer than the sliding windows.
LENGTH = 10
GREEDY = {"max_new_tokens": LENGTH, "do_sample": False}
# What stands in every row of these is plain tokens, so they can be given as such.
IN_FRONT = ("front", "no-slot", "text-alone", "no-field")


def unanswered(names, backbone, **options) -> reference.Case:
    given = case(names, backbone, **options)
    return replace(given, examples=tuple(replace(e, target=()) for e in given.examples))


@torch.no_grad()
def generated(backbone, given, **options) -> list[list[int]]:
    """All rows in one batch, whatever stands in them."""
    ready = Forward(backbone).prepare(given.examples, given.fillings, given.which)
    found = PromptedModel(backbone, ready.context).generate(
        inputs_embeds=ready.inputs_embeds,
        attention_mask=ready.mask.long(),
        prompt_ids=ready.rows,
        **(GREEDY | options),
    )
    return [reference.until_end(ids, backbone.model) for ids in found.tolist()]


@torch.no_grad()
def generated_from_ids(backbone, given, **options) -> tuple[list[list[int]], list[int]]:
    """All rows in one batch, their own tokens given as ids; and how many tokens each step ran."""
    forward = Forward(backbone)
    ready = forward.prepare(given.examples, given.fillings, given.which)
    batch = Batch.of([forward.plan(e).row for e in given.examples])
    assert int(batch.ids.min()) >= 0
    with reference.inputs_of(reference.first_site(backbone)) as seen:
        found = PromptedModel(backbone, ready.context).generate(
            batch.ids, attention_mask=batch.mask.long(), prompt_ids=ready.rows, **(GREEDY | options)
        )
    rows = [reference.until_end(ids, backbone.model) for ids in found[:, batch.ids.shape[1] :].tolist()]
    return rows, [s.shape[1] for s in seen]


@cache
def wanted(family, names, **options) -> list[list[int]]:
    """Each row alone with the prompt in its sequence, by the plain model."""
    given = unanswered(names, reference.backbone(family))
    model = reference.plain(family)
    return [reference.generate(model, example, prompt, **(GREEDY | options)) for example, prompt in given.alone()]


CACHES = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "none": {"use_cache": False},
}


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_mixed_batch_yields_what_each_row_yields_alone(family, kept, beams):
    backbone = reference.backbone(family)
    names = tuple(TEMPLATES) if beams == 1 else ("front", "behind", "no-slot", "slot-alone")
    found = generated(backbone, unanswered(names, backbone), num_beams=beams, **CACHES[kept])
    expected = wanted(family, names, num_beams=beams)
    assert found == expected
    assert len({tuple(ids) for ids in expected}) > 2
    assert max(map(len, expected)) == LENGTH


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kept", CACHES)
def test_tokens_given_as_ids_yield_the_same(family, kept):
    backbone = reference.backbone(family)
    found, _ = generated_from_ids(backbone, unanswered(IN_FRONT, backbone), **CACHES[kept])
    assert found == wanted(family, IN_FRONT)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_prompt_lookup_yields_the_same(family):
    backbone = reference.backbone(family)
    given = unanswered(IN_FRONT, backbone)
    steps = []
    for example, k, expected in zip(given.examples, given.which, wanted(family, IN_FRONT), strict=True):
        alone = replace(given, examples=(example,), which=(k,))
        found, lengths = generated_from_ids(backbone, alone, prompt_lookup_num_tokens=3)
        assert found == [expected]
        steps += lengths[1:]
    assert max(steps) > 1, "nothing was looked up"


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_row_of_one_token_goes_with_a_static_cache(family):
    backbone = reference.backbone(family)
    given = unanswered(["no-field"], backbone, rows=[{"label": ""}] * 2)
    assert {len(Forward(backbone).plan(e).row) for e in given.examples} == {1}
    found = generated(backbone, given, cache_implementation="static")
    assert found == [reference.generate(reference.plain(family), e, p, **GREEDY) for e, p in given.alone()]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sampling_with_a_seed_draws_the_same(family):
    backbone = reference.backbone(family)
    given = unanswered(["front", "behind"], backbone)
    for example, k in zip(given.examples, given.which, strict=True):
        options = {**GREEDY, "do_sample": True, "temperature": 2.0, "top_k": 0}
        torch.manual_seed(3)
        expected = reference.generate(reference.plain(family), example, given.prompts[k], **options)
        torch.manual_seed(3)
        assert generated(backbone, replace(given, examples=(example,), which=(k,)), **options) == [expected]


def test_entries_are_repeated_for_beams_without_being_named():
    backbone = reference.backbone("llama")
    given = unanswered(["front", "behind", "two"], backbone, rows=reference.ROWS[:1])
    with torch.no_grad():
        ready = Forward(backbone).prepare(given.examples, given.fillings, given.which)
    assert ready.rows is None
    assert ready.context.size == len(given.examples)
    model = reference.plain("llama")
    expected = [reference.generate(model, e, p, num_beams=3, **GREEDY) for e, p in given.alone()]
    assert generated(backbone, given, num_beams=3) == expected


@pytest.mark.parametrize("family", tiny.UNROUTED)
@pytest.mark.parametrize("beams", [1, 3])
def test_backbones_that_read_no_context_generate(family, beams):
    backbone = reference.backbone(family)
    names = ("front", "behind", "no-slot", "two")
    given = unanswered(names, backbone)
    assert len({len(e.tokens) for e in given.examples}) > 1, "no row is padded"
    expected = wanted(family, names, num_beams=beams)
    assert generated(backbone, given, num_beams=beams) == expected
    assert len({tuple(ids) for ids in expected}) > 2


def test_a_model_that_keeps_a_state_looks_nothing_up():
    backbone = reference.backbone("mamba")
    ids = torch.tensor([[3, 4, 5, 3, 4, 5]])
    with pytest.raises(ValueError, match="stateful"):
        PromptedModel(backbone, None).generate(ids, **GREEDY, prompt_lookup_num_tokens=2)


def test_eager_attention_generates_the_same():
    backbone = tiny.backbone("gemma3", attention="eager")
    names = tuple(TEMPLATES)
    assert generated(backbone, unanswered(names, backbone)) == wanted("gemma3", names)


def test_a_backbone_for_training_generates_the_same():
    backbone = tiny.backbone("llama", gradient_checkpointing=True)
    names = tuple(TEMPLATES)
    assert generated(backbone, unanswered(names, backbone)) == wanted("llama", names)


def test_real_model_yields_what_each_row_yields_alone(smollm2):
    given = unanswered(["front", "behind"], smollm2, rows=reference.ROWS[:2])
    expected = [reference.generate(smollm2.model, e, p, max_new_tokens=6, do_sample=False) for e, p in given.alone()]
    for kept in ("dynamic", "static"):
        assert generated(smollm2, given, max_new_tokens=6, **CACHES[kept]) == expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generation_changes_neither_backbone_nor_context(family):
    backbone = tiny.backbone(family)
    given = unanswered(list(TEMPLATES), backbone)
    before = reference.state(backbone.model)
    with torch.no_grad():
        ready = Forward(backbone).prepare(given.examples, given.fillings, given.which)
    tensors = [ready.inputs_embeds, ready.mask, ready.rows, ready.context.lengths, *ready.context.keys]
    versions = [t._version for t in tensors]
    model = PromptedModel(backbone, ready.context)
    arguments = {"inputs_embeds": ready.inputs_embeds, "attention_mask": ready.mask, "prompt_ids": ready.rows}
    first = model.generate(**arguments, **GREEDY, cache_implementation="static")
    with reference.failing(reference.last_site(backbone)):
        model.generate(**arguments, **GREEDY)
    assert torch.equal(model.generate(**arguments, **GREEDY), first)
    assert [t._version for t in tensors] == versions
    assert reference.state(backbone.model) == before


def test_the_backbone_is_no_part_of_the_wrapper():
    backbone = reference.backbone("llama")
    model = PromptedModel(backbone, None)
    model.generation_config.max_new_tokens = 1
    assert list(model.parameters()) == []
    assert backbone.model.generation_config.max_new_tokens != 1


def test_the_model_itself_goes_on_generating_as_before():
    backbone = tiny.backbone("mistral")
    given = unanswered(["front"], backbone)
    generated(backbone, given)
    ids = torch.tensor([given.examples[0].tokens[3:]])
    found, expected = (m.generate(ids, **GREEDY) for m in (backbone.model, reference.plain("mistral")))
    assert torch.equal(found, expected)


def test_a_step_by_hand_counts_its_positions_from_the_mask():
    backbone = reference.backbone("gpt2")
    given = unanswered(["front", "no-slot"], backbone)
    with torch.no_grad():
        ready = Forward(backbone).prepare(given.examples, given.fillings, given.which)
        model = PromptedModel(backbone, ready.context)
        outputs = model(inputs_embeds=ready.inputs_embeds, attention_mask=ready.mask.long(), prompt_ids=ready.rows)
        wanted_logits = backbone.logits(ready.inputs_embeds, ready.mask, ready.context, ready.rows, keep=1)
    reference.assert_close(outputs.logits[:, -1:], wanted_logits)


def test_a_step_by_hand_without_a_mask_sees_every_token():
    backbone = reference.backbone("gpt2")
    given = unanswered(["front"], backbone, rows=reference.ROWS[:1])
    with torch.no_grad():
        ready = Forward(backbone).prepare(given.examples, given.fillings)
        model = PromptedModel(backbone, ready.context)
        outputs = model(inputs_embeds=ready.inputs_embeds)
        wanted_logits = backbone.logits(ready.inputs_embeds, ready.mask, ready.context, keep=1)
    reference.assert_close(outputs.logits[:, -1:], wanted_logits)
