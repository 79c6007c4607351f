from __future__ import annotations

import pytest
import torch

import reference
import tiny
from softprompt.backbone.backbone import Backbone
from softprompt.backbone.sites import probe
from softprompt.errors import SettingsError


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_layer_attends_once(family):
    backbone = reference.backbone(family)
    config = backbone.model.config
    assert len(backbone.sites) == config.num_hidden_layers
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    for number, site in enumerate(backbone.sites):
        assert (site.heads, site.key_width, site.value_width) == (heads, 8, 8)
        assert f".{number}." in site.name
        assert backbone.model.get_submodule(site.name) is not None


def test_grouped_heads_are_counted_as_they_are_kept():
    assert [s.heads for s in reference.backbone("llama").sites] == [2, 2]
    assert [s.heads for s in reference.backbone("gpt2").sites] == [4, 4]


def test_values_may_be_narrower_than_keys():
    assert {(s.key_width, s.value_width) for s in reference.backbone("deepseek_v3").sites} == {(12, 6)}


@pytest.mark.parametrize(("family", "windows"), [("llama", [None, None]), ("mistral", [6, 6]), ("gemma3", [6, None])])
def test_windows_are_seen(family, windows):
    assert [s.window for s in reference.backbone(family).sites] == windows


@pytest.mark.parametrize("family", tiny.UNROUTED)
def test_attention_off_the_registry_has_no_site(family):
    assert reference.backbone(family).sites == ()
    assert not reference.backbone(family).lowers


def test_layers_that_share_their_weights_have_a_site_each():
    model = tiny.model("llama")
    model.model.layers[1] = model.model.layers[0]
    backbone = Backbone(model, tiny.tokenizer())
    assert [s.name for s in backbone.sites] == [f"model.layers.0.self_attn.{call}" for call in (0, 1)]
    assert backbone.lowers
    with pytest.raises(SettingsError, match="share their weights"):
        Backbone(model, tiny.tokenizer(), gradient_checkpointing=True)


def test_probing_leaves_the_model_alone():
    model = tiny.model("gemma3")
    before = reference.state(model)
    probe(model)
    assert reference.state(model) == before


def test_an_error_of_the_model_itself_is_raised():
    model = tiny.model("llama")
    with reference.failing(model.model.layers[1]):
        probe(model)


def test_probing_draws_no_random_number():
    model = tiny.model("llama")
    torch.manual_seed(5)
    probe(model)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
