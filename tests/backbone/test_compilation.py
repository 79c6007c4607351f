"""Backbones whose layers are compiled."""

from __future__ import annotations

import pytest
import torch

import reference
import tiny
from reference import assert_close
from softprompt.backbone.backbone import Backbone
from softprompt.backbone.context import Context
from softprompt.errors import SettingsError

# torch's compiler does what torch itself warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_compiled_layers_compute_the_same():
    inputs = reference.backbone("llama").embed(torch.arange(3, 10)[None])
    mask = torch.ones(1, 7, dtype=torch.bool)
    found = []
    for backbone in (reference.backbone("llama"), tiny.backbone("llama", compile=True)):
        leaf = inputs.clone().requires_grad_()
        logits = backbone.logits(leaf, mask, keep=2)
        logits.square().sum().backward()
        found.append((logits, leaf.grad))
    assert_close(found[1][0], found[0][0])
    assert_close(found[1][1], found[0][1])


def test_reading_a_context_compiles_no_layer_anew():
    backbone, plain = tiny.backbone("llama", compile=True), reference.backbone("llama")
    inputs = plain.embed(torch.arange(3, 12)[None])
    mask = torch.ones(1, 9, dtype=torch.bool)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=3, fail_on_recompile_limit_hit=True), torch.no_grad():
        context = Context.of([backbone.read(inputs[:, :5], mask[:, :5])])
        found = backbone.logits(inputs[:, 5:], mask[:, 5:], context, keep=4)
    assert_close(found, plain.logits(inputs, mask, keep=4))


def test_a_model_whose_layers_cannot_be_told_is_refused():
    model = tiny.model("mamba")
    model.backbone.layers = torch.nn.ModuleList()
    with pytest.raises(SettingsError, match="compile=False"):
        Backbone(model, tiny.tokenizer(), compile=True)
