from __future__ import annotations

import pytest
import torch

import reference
import tiny
from softprompt.backbone.backbone import Backbone


def fingerprint(model) -> str:
    return Backbone(model, tiny.tokenizer()).fingerprint


def test_the_same_weights_have_the_same_fingerprint():
    assert fingerprint(tiny.model("llama")) == reference.backbone("llama").fingerprint
    assert Backbone(tiny.model("llama"), tiny.tokenizer(), "another name").fingerprint == fingerprint(
        tiny.model("llama", attention="eager")
    )


def test_bfloat16_and_float32_have_the_same_fingerprint():
    assert fingerprint(tiny.model("gpt2").to(torch.bfloat16)) == reference.backbone("gpt2").fingerprint


def test_a_backbone_for_recomputing_has_the_same_fingerprint():
    recomputing = tiny.backbone("llama", gradient_checkpointing=True)
    assert recomputing.fingerprint == reference.backbone("llama").fingerprint


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.1.self_attn.v_proj.weight", "lm_head.weight"]
)
def test_other_weights_have_another_fingerprint(name):
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_parameter(name).mul_(1.1)
    assert fingerprint(model) != reference.backbone("llama").fingerprint


def test_other_shapes_and_seeds_have_other_fingerprints():
    backbones = [reference.backbone(family) for family in ("llama", "gpt2", "qwen3", "opt")] + [tiny.backbone(seed=1)]
    assert len({b.fingerprint for b in backbones}) == len(backbones)


def test_reading_and_generating_do_not_change_it():
    backbone = tiny.backbone("llama")
    backbone.logits(backbone.embed(torch.arange(4)[None]), torch.ones(1, 4, dtype=torch.bool), keep=1)
    assert fingerprint(backbone.model) == backbone.fingerprint


def test_padding_and_truncation_are_no_part_of_the_tokenizer():
    tokenizer = tiny.tokenizer()
    tokenizer(["a", "the market"], padding=True, truncation=True, max_length=4)
    assert Backbone(tiny.model("llama"), tokenizer).tokenizer_fingerprint == (
        reference.backbone("llama").tokenizer_fingerprint
    )


def test_another_vocabulary_is_another_tokenizer():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["zebra"])
    assert Backbone(tiny.model("llama"), tokenizer).tokenizer_fingerprint != (
        reference.backbone("llama").tokenizer_fingerprint
    )
