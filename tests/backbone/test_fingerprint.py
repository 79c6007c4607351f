from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

import reference
import tiny
from softprompt.backbone.backbone import Backbone
from softprompt.backbone.fingerprint import settings
from softprompt.backbone.loading import DTYPES


def fingerprint(model) -> str:
    return Backbone(model, tiny.tokenizer()).fingerprint


def test_the_same_weights_have_the_same_fingerprint():
    assert fingerprint(tiny.model("llama")) == reference.backbone("llama").fingerprint
    assert Backbone(tiny.model("llama"), tiny.tokenizer(), "another name").fingerprint == fingerprint(
        tiny.model("llama", attention="eager")
    )


def test_bfloat16_and_float32_have_the_same_fingerprint():
    assert fingerprint(tiny.model("gpt2").to(torch.bfloat16)) == reference.backbone("gpt2").fingerprint


@pytest.mark.parametrize("saved", DTYPES)
def test_one_checkpoint_has_one_fingerprint_in_every_dtype(tmp_path, saved):
    model = tiny.model("llama")
    with torch.no_grad():
        # Too large and too small for float16.
        model.lm_head.weight[0, 0], model.lm_head.weight[0, 1] = 1e6, 1e-9
    model.to(DTYPES[saved]).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    loaded = [Backbone.load(str(tmp_path), dtype=dtype, device="cpu") for dtype in DTYPES]
    assert [b.dtype for b in loaded] == list(DTYPES.values())
    assert len({b.fingerprint for b in loaded}) == 1


@pytest.mark.parametrize(
    ("family", "other"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
        ("gpt_neox", {"rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}}),
        ("llama", {"rms_norm_eps": 1e-3}),
        ("gpt2", {"layer_norm_epsilon": 1e-3}),
        ("gpt_neox", {"layer_norm_eps": 1e-3}),
        ("llama", {"hidden_act": "gelu"}),
        ("opt", {"activation_function": "gelu"}),
        ("gemma3", {"hidden_activation": "relu"}),
        ("gemma3", {"final_logit_softcapping": 30.0}),
        ("gemma3", {"attn_logit_softcapping": 50.0}),
        ("gemma3", {"query_pre_attn_scalar": 16}),
        ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("gpt_neox", {"use_parallel_residual": False}),
    ],
    ids=str,
)
def test_the_same_weights_used_otherwise_have_another_fingerprint(family, other):
    model = tiny.model(family)
    config = type(model.config)(**model.config.to_dict() | other)
    remade = type(model)(config)
    remade.load_state_dict(model.state_dict())
    assert fingerprint(remade) != reference.backbone(family).fingerprint


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"rope_theta": 500000}, {"rope_type": "default", "rope_theta": 5e5}),
        (
            {"rope_theta": 500000, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
        ),
        (
            {"rope_theta": 500000, "partial_rotary_factor": 0.5, "rope_scaling": None},
            {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 5e5},
        ),
    ],
    ids=["plain", "scaled", "partial"],
)
def test_rotary_positions_are_read_from_wherever_a_config_has_them(older, newer):
    config = SimpleNamespace(**older)
    config.get_text_config = lambda: config
    assert settings(config)["rope"] == settings(AutoConfig.for_model("llama", rope_parameters=newer))["rope"]


def test_what_a_version_of_transformers_fills_in_is_left_out():
    """Written down, so that another version shows where it differs."""
    assert {k: v for k, v in settings(tiny.model("gemma3").config).items() if v is not None} == {
        "model_type": "gemma3_text",
        "num_attention_heads": 4.0,
        "num_key_value_heads": 2.0,
        "sliding_window": 6.0,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 8.0,
        "near": [(0, "sliding_attention")],
        "rope": {"sliding_attention": {"rope_theta": 10000.0}, "full_attention": {"rope_theta": 1000000.0}},
    }


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
