"""Backbones whose weights are kept in fewer bits."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn

import tiny
from softprompt import artifact, ensemble
from softprompt.answer.engine import Engine
from softprompt.backbone.backbone import Backbone
from softprompt.errors import SettingsError, SourceError
from softprompt.learn.evaluation import evaluate
from toys import ROWS, TOPICS, learn, prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.model("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return str(path)


def test_a_prompt_is_learned_before_eight_bits(folder, tmp_path):
    # Not among what the tests install: wherever torchao is there, transformers loads it for every model.
    pytest.importorskip("torchao")
    backbone, whole = Backbone.load(folder, quantization="int8"), Backbone.load(folder)
    weight = backbone.model.model.layers[0].mlp.up_proj.weight
    assert type(weight.data) is not torch.Tensor
    assert not torch.equal(weight.dequantize(), whole.model.model.layers[0].mlp.up_proj.weight)
    result = learn(backbone, TOPICS, ROWS, ROWS, output=tmp_path / "p")
    moved = (result.prompt.values.embeddings - result.prompt.state.start["embeddings"]).norm(dim=-1)
    assert bool((moved > 0).all())
    # The weights are the same, however they are kept: a prompt goes with both.
    assert backbone.fingerprint == whole.fingerprint
    artifact.load(tmp_path / "p", whole)


def test_kernels_that_give_no_gradient_are_refused():
    model = tiny.model("llama")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, args, out: out.detach())
    model.is_quantized = True
    with pytest.raises(SourceError, match="no gradient comes through"):
        Backbone(model, tiny.tokenizer(), "silent")


def test_an_unknown_way_is_refused(folder):
    with pytest.raises(SettingsError, match=r"'int3' is unknown.*int8, nf4"):
        Backbone.load(folder, quantization="int3")


def test_a_library_that_is_missing_is_named(folder, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(SettingsError, match=r"nf4 needs bitsandbytes.*pip install bitsandbytes"):
        Backbone.load(folder, quantization="nf4")


@pytest.mark.parametrize("learned", [True, False])
def test_a_prompt_learned_before_other_weights_is_noted_once(folder, caplog, learned):
    backbone = Backbone.load(folder)
    before = replace(prompt(backbone), training={"quantized": learned})
    unknown = prompt(backbone)
    backbone.model.is_quantized = not learned
    engine = Engine(backbone)
    engine.add("unknown", unknown)
    engine.add("p", before)
    engine.classify([("p", ROWS[0])] * 2)
    kept, now = ("quantised", "whole") if learned else ("whole", "quantised")
    assert [m.partition(": it may be")[0] for m in caplog.messages] == [
        f"p: it was learned before {kept} weights, and those of {folder} are {now}"
    ]
    caplog.clear()
    evaluate(backbone, before, ROWS, progress=False)
    assert len(caplog.messages) == 1
    caplog.clear()
    engine.add("all", ensemble({"a": unknown, "b": before, "c": replace(before)}))
    assert [m.partition(":")[0] for m in caplog.messages] == ["all/b"]
    caplog.clear()
    backbone.model.is_quantized = learned
    Engine(backbone).add("p", before)
    assert not caplog.messages


def test_how_weights_are_kept_is_written_down(folder):
    backbone = Backbone.load(folder)
    assert backbone.quantization is None
    made = Backbone(tiny.model("llama"), tiny.tokenizer(), "eight", quantization="int8")
    assert learn(made, steps=1).prompt.quantization == "int8"
    assert learn(backbone, steps=1).prompt.quantization is None
