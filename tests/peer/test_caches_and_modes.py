"""Ways of running a model: generating, caches, recomputing, windows, positions of the caller's own."""

from __future__ import annotations

import pytest
import torch

import reference
import tiny
from our_side import WRITING, alone, entered, examples, random_values
from peft_side import (
    AT_INPUT,
    CONFIGS,
    GREEDY,
    IDS,
    ONES,
    TOKENS,
    adapted,
    last_logits,
    task_of,
    written,
    written_anew,
    written_in_sequence,
)
from reference import assert_close
from softprompt.backbone.context import Context
from softprompt.prompts import PrefixTuning, PromptTuning
from softprompt.run.generation import PromptedModel
from softprompt.text.examples import Example
from toys import learn

KINDS = ["tokens", "prefix"]
MODES = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}


def rows_of(backbone, kind: str) -> list[Example]:
    return examples(backbone, WRITING, prefix=kind == "prefix", answered=False)


def generated_anew(backbone, kind: str) -> list[list[int]]:
    """Each row alone, by the plain model, every step over the whole row."""
    values, model = random_values(kind, backbone), tiny.model("llama")
    found = []
    for row in rows_of(backbone, kind):
        ids: list[int] = []
        for _ in range(GREEDY["max_new_tokens"]):
            longer = Example((*row.tokens, *ids), row.field_at)
            ids.append(int(alone(backbone, model, longer, values)[1][-1].argmax()))
        found.append(reference.until_end(ids, model))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_every_way_of_generating_writes_the_same(kind, mode):
    backbone = reference.backbone("llama")
    rows = rows_of(backbone, kind)
    batches = [[row] for row in rows] if mode == "prompt lookup" else [rows]  # transformers looks up for one row only
    found = []
    for batch in batches:
        ready = entered(backbone, random_values(kind, backbone), batch)
        ids = PromptedModel(backbone, ready.context).write(
            ready.inputs_embeds, ready.mask, ready.rows, **GREEDY, **MODES[mode]
        )
        found += [reference.until_end(row, backbone.model) for row in ids.tolist()]
    assert found == generated_anew(backbone, kind)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_steps_by_hand_write_what_generate_writes(kind):
    backbone = reference.backbone("llama")
    ready = entered(backbone, random_values(kind, backbone), rows_of(backbone, kind))
    model, mask, found = PromptedModel(backbone, ready.context), ready.mask.long(), []
    inputs = {"inputs_embeds": ready.inputs_embeds}
    for _ in range(GREEDY["max_new_tokens"]):
        outputs = model(**inputs, attention_mask=mask, prompt_ids=ready.rows, use_cache=True)
        found.append(outputs.logits[:, -1:].argmax(dim=-1))
        cache = "cache" if "cache" in outputs else "past_key_values"
        inputs = {"input_ids": found[-1], cache: outputs[cache]}
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], dim=1)
    rows = torch.cat(found, dim=1).tolist()
    assert [reference.until_end(row, backbone.model) for row in rows] == generated_anew(backbone, kind)


@pytest.mark.peer
@pytest.mark.parametrize("method", AT_INPUT)
def test_peft_puts_the_prompt_in_again_at_every_step_that_has_a_cache(method):
    model = adapted("llama", method)
    wanted = written_in_sequence(model, method, "llama")
    assert written(model, method) != wanted
    assert written(model, method, use_cache=False) == wanted


@pytest.mark.peer
@pytest.mark.parametrize("options", [{}, MODES["prompt lookup"]], ids=["plain", "prompt lookup"])
def test_peft_generates_without_the_prefix(options):
    one, other = (adapted("llama", "prefix", seed=seed) for seed in (0, 1))
    assert written_anew(one) != written_anew(other)
    assert written(one, "prefix", **options) == written(other, "prefix", **options)


@pytest.mark.peer
def test_peft_writes_something_else_with_a_prefix_and_no_cache():
    model = adapted("llama", "prefix")
    assert written(model, "prefix", use_cache=False) != written_anew(model)


@pytest.mark.peer
@pytest.mark.parametrize("method", CONFIGS)
def test_peft_fails_with_a_static_cache(method):
    # Which of the two depends on how much is written: the cache has no room for the prompt, or its mask is not known.
    with pytest.raises((IndexError, KeyError), match=r"out of bounds|cache_position"):
        written(adapted("llama", method), method, **MODES["static"])


@pytest.mark.peer
@pytest.mark.parametrize("method", CONFIGS)
def test_peft_generates_behind_ids_alone(method):
    model = adapted("llama", method)
    inputs = {"inputs_embeds": model.get_base_model().get_input_embeddings()(IDS), "attention_mask": ONES}
    with pytest.raises(ValueError, match="doesn't have its forwarding implemented"):
        model.generate(**inputs, **task_of(method), **GREEDY)


@pytest.mark.peer
@pytest.mark.parametrize("method", ["prompt", "prefix"])
@torch.no_grad()
def test_peft_decodes_wrongly_by_hand(method):
    model = adapted("llama", method)
    first = model(IDS, attention_mask=ONES, use_cache=True)
    token = first.logits[:, -1:].argmax(dim=-1)
    wanted = last_logits(model, torch.cat([IDS, token], dim=1))
    assert first.cache.get_seq_length() == TOKENS + IDS.shape[1]
    found = model(token, past_key_values=first.cache, use_cache=True)
    assert (found.logits[0, -1] - wanted).abs().max() > 0.1
    if method == "prompt":
        # The prompt stands in the cache a second time, before the new token.
        assert found.cache.get_seq_length() == 2 * TOKENS + IDS.shape[1] + 1
    else:
        # The caller's cache is thrown away for the prefix.
        assert_close(found.logits[0, -1], last_logits(model, token))


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_layers_gives_the_same_gradients(kind):
    found = []
    for saving in (False, True):
        backbone = tiny.backbone("llama", gradient_checkpointing=saving)
        method = {"tokens": PromptTuning, "prefix": PrefixTuning}[kind](tokens=TOKENS)
        found.append(learn(backbone, WRITING, method=method, steps=3, learning_rate=0.01).prompt.values.tensors())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.peer
@pytest.mark.parametrize("method", ["prefix", "cartridge"])
def test_peft_refuses_a_prefix_where_layers_are_recomputed(method):
    model = tiny.model("llama")
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="does not work with gradient checkpointing"):
        adapted(model, method)


@pytest.mark.peer
def test_peft_fails_with_a_prefix_where_layers_are_recomputed_later():
    model = adapted("llama", "prefix").train()
    model.get_base_model().gradient_checkpointing_enable()
    with pytest.raises(RuntimeError, match="must match the size"):
        model(IDS, attention_mask=ONES, labels=IDS)


LONG = torch.arange(10, 30)[None]
"""More tokens than the windows of all layers reach over."""


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
@torch.no_grad()
def test_a_prefix_is_seen_past_the_window(family):
    backbone, model = reference.backbone(family), tiny.model(family)
    row = Example((-1, -2, -3, *LONG[0].tolist()), TOKENS, reads=(TOKENS + LONG.shape[1] - 1,))
    logits = []
    for seed in (0, 1):
        prefix = random_values("prefix", backbone, seed)
        ready = entered(backbone, prefix, [row])
        logits.append(PromptedModel(backbone, ready.context)(LONG, prompt_ids=ready.rows).logits[0, -1])
        assert_close(logits[-1], alone(backbone, model, row, prefix)[1][0])
    assert (logits[0] - logits[1]).abs().max() > 0.1


@pytest.mark.peer
def test_peft_forgets_a_prefix_past_the_window():
    one, other = (last_logits(adapted("mistral", "prefix", seed=seed), LONG) for seed in (0, 1))
    assert torch.equal(one, other)


PACKED = torch.tensor([[0, 1, 2, 0, 1]])
"""Two texts in one row, of three and of two tokens."""


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral", "gemma3"])
@torch.no_grad()
def test_texts_packed_in_one_row_are_answered_as_each_alone(family):
    backbone, model = reference.backbone(family), reference.plain(family)
    prompt = random_values("tokens", backbone).embeddings
    (stretch,) = backbone.read(prompt[None], torch.ones(1, TOKENS, dtype=torch.bool))
    # As with the model itself: without a mask, and without a cache, positions say where a text begins.
    found = PromptedModel(backbone, Context.of([[stretch]]))(IDS, position_ids=TOKENS + PACKED, use_cache=False)
    for text in (slice(0, 3), slice(3, 5)):
        sequence = reference.embeds(model, (-1, -2, -3, *IDS[0, text].tolist()), prompt)
        assert_close(found.logits[:, text], model(inputs_embeds=sequence).logits[:, TOKENS:])


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "opt"])
@torch.no_grad()
def test_positions_of_the_callers_own_are_heeded(family):
    backbone, model = reference.backbone(family), reference.plain(family)
    prompt = random_values("tokens", backbone).embeddings
    (stretch,) = backbone.read(prompt[None], torch.ones(1, TOKENS, dtype=torch.bool))
    further = TOKENS + 4 + torch.arange(IDS.shape[1])[None]
    found = PromptedModel(backbone, Context.of([[stretch]]))(IDS, attention_mask=ONES, position_ids=further)
    sequence = reference.embeds(model, (-1, -2, -3, *IDS[0].tolist()), prompt)
    positions = torch.cat([torch.arange(TOKENS)[None], further], dim=1)
    mask = torch.ones_like(positions)
    wanted = model(inputs_embeds=sequence, attention_mask=mask, position_ids=positions)
    assert_close(found.logits, wanted.logits[:, TOKENS:])


@pytest.mark.peer
def test_peft_ignores_positions():
    model = adapted("llama", "prompt")
    with pytest.warns(UserWarning, match="Ignoring position ids"), torch.no_grad():
        packed = model(IDS, position_ids=PACKED, use_cache=False).logits[0, -1]
    assert torch.equal(packed, last_logits(model))
    assert (packed - last_logits(model, IDS[:, 3:])).abs().max() > 0.1
