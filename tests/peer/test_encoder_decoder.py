"""Prompts for encoder-decoders: every number that is trained has something to do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

import reference
import tiny
from our_side import WRITING, assert_a_batch_equals_each_row_alone, examples, random_values
from peft_side import IDS, ONES, TOKENS, adapted
from reference import assert_close
from softprompt.backbone.backbone import Backbone
from softprompt.prompts import PrefixTuning, PromptTuning, PTuning
from softprompt.run.forward import Filling, Forward
from toys import learn

LAYERS = 4
"""Of encoder and decoder each: an even number of them."""


def t5() -> PreTrainedModel:
    config = tiny.config("t5")
    config.num_layers = config.num_decoder_layers = LAYERS
    config.d_kv = config.d_model // config.num_heads
    return tiny.random_model(config, AutoModelForSeq2SeqLM)


def trained(model) -> torch.Tensor:
    """The gradient of PEFT's prompt after one backward pass."""
    model.train()(IDS, attention_mask=ONES, labels=IDS).loss.backward()
    return model.prompt_encoder["default"].embedding.weight.grad


def test_every_key_and_value_of_a_prefix_gets_gradient():
    backbone = Backbone(t5(), tiny.tokenizer("t5"))
    # Encoder, decoder, and the decoder's look at the encoder.
    assert len(backbone.sites) == 3 * LAYERS
    prefix = random_values("prefix", backbone)
    leaves = [t.requires_grad_() for t in (*prefix.keys, *prefix.values)]
    logits, targets = Forward(backbone)(examples(backbone, WRITING, prefix=True), [Filling(prefix)])
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
    assert all(bool((t.grad != 0).flatten(1).any(dim=1).all()) for t in leaves)


def test_every_layer_has_a_prefix_of_its_own():
    backbone = Backbone(t5(), tiny.tokenizer("t5"))
    assert_a_batch_equals_each_row_alone(backbone, t5(), WRITING, random_values("prefix", backbone))
    values = learn(backbone, WRITING, method=PrefixTuning(tokens=TOKENS), steps=1).prompt.values
    assert len({k.numpy(force=True).tobytes() for k in values.keys}) == 3 * LAYERS


@pytest.mark.peer
def test_peft_trains_half_of_a_prefix_where_the_number_of_layers_is_even():
    gradient = trained(adapted(t5(), "prefix", "SEQ_2_SEQ_LM")).view(TOKENS, LAYERS, 2, -1)
    assert (gradient != 0).any(dim=3).any(dim=2).any(dim=0).tolist() == [True, False] * (LAYERS // 2)


@pytest.mark.peer
def test_peft_gives_a_layer_and_the_one_half_way_on_the_same_prefix():
    model = adapted(t5(), "prefix", "SEQ_2_SEQ_LM")
    keys, half = [layer.keys for layer in model.get_prompt(1).self_attention_cache.layers], LAYERS // 2
    assert all(torch.equal(keys[i], keys[i + half]) for i in range(half))
    assert not torch.equal(keys[0], keys[1])
    with torch.no_grad():
        encoded = model(IDS, attention_mask=ONES, labels=IDS).encoder_last_hidden_state
        assert_close(encoded, t5().get_encoder()(IDS, attention_mask=ONES).last_hidden_state)


@pytest.mark.parametrize("method", [PromptTuning(tokens=TOKENS), PTuning(tokens=TOKENS)], ids=["prompt", "p-tuning"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_every_virtual_token_is_trained_and_read(family, method):
    backbone = reference.backbone(family)
    prompt = learn(backbone, WRITING, method=method, steps=1).prompt
    found, start = prompt.values.embeddings, prompt.state.start["embeddings"]
    assert found.shape == (TOKENS, backbone.hidden_size)
    assert bool((found != start).any(dim=1).all())


@pytest.mark.peer
@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_peft_keeps_twice_the_virtual_tokens_and_trains_the_first_half(family, method):
    gradient = trained(adapted(family, method, "SEQ_2_SEQ_LM"))
    assert (gradient != 0).any(dim=1).tolist() == [True] * TOKENS + [False] * TOKENS
