from __future__ import annotations

import gc
from collections import Counter
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import tiny
from softprompt.backbone.activations import kept_small
from softprompt.backbone.backbone import Backbone

IDS = torch.randint(tiny.VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(0))


def gradient(backbone: Backbone, *, small: bool) -> Tensor:
    """Of a model's own forward pass, to its inputs."""
    inputs = backbone.embed(IDS).detach().requires_grad_()
    if small:
        with kept_small(backbone.dtype):
            states = backbone.model(inputs_embeds=inputs, output_hidden_states=True).hidden_states[-1]
    else:
        states = backbone.model(inputs_embeds=inputs, output_hidden_states=True).hidden_states[-1]
    states.float().square().sum().backward()
    assert inputs.grad is not None
    return inputs.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma3", "gpt_neox", "bert", "modernbert"])
def test_gradients_stay_the_same_to_the_last_bit(family: str, dtype: torch.dtype):
    backbone = Backbone(tiny.model(family).to(dtype), tiny.tokenizer())
    small = gradient(backbone, small=True)
    assert small.abs().max() > 0
    assert torch.equal(small, gradient(backbone, small=False))


def held(backbone: Backbone, hooks: AbstractContextManager[object]) -> Counter[tuple[torch.dtype, int]]:
    """Dtypes and widths of the `[B, T, width]` tensors that a pass has left for its backward pass."""
    inputs = backbone.embed(IDS).detach().requires_grad_()
    there = {id(o) for o in gc.get_objects() if isinstance(o, Tensor)}
    with hooks:
        loss = backbone.model(inputs_embeds=inputs, use_cache=False).logits.sum()
    kept = [o for o in gc.get_objects() if isinstance(o, Tensor) and id(o) not in there and o.shape[:2] == IDS.shape]
    # One storage may be kept by many.
    storages = {o.untyped_storage().data_ptr(): o for o in kept if o is not inputs}
    found = Counter((o.dtype, o.shape[-1]) for o in storages.values())
    del kept, storages
    loss.backward()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_less_is_kept(dtype: torch.dtype):
    backbone = Backbone(tiny.model("llama").to(dtype), tiny.tokenizer())
    config = backbone.model.config
    layers, inner, width = config.num_hidden_layers, (dtype, config.intermediate_size), config.hidden_size
    usual = held(backbone, saved_tensors_hooks(lambda t: t, lambda t: t))
    small = held(backbone, kept_small(dtype))
    # Gate, activation and the other half; the activation follows from the gate.
    assert usual[inner] == 3 * layers
    assert small[inner] == 2 * layers
    if dtype == torch.bfloat16:
        # A normalisation before attention, one before the gate, one at the end.
        assert usual[torch.float32, width] == 2 * layers + 1
        assert small[torch.float32, width] == 0


def test_a_pass_without_gradients_keeps_nothing():
    backbone = tiny.backbone("llama")
    with torch.no_grad():
        outputs = backbone.outputs(backbone.embed(IDS), torch.ones_like(IDS, dtype=torch.bool))
    assert outputs.logits is not None
    assert not outputs.logits.requires_grad


@pytest.mark.parametrize("what", ["input", "other"])
def test_what_is_changed_before_the_backward_pass_is_told_as_ever(what: str):
    x = torch.randn(4, requires_grad=True)
    with kept_small(torch.float32):
        z, w = x * 2, torch.ones(4)
        y = (torch.nn.functional.silu(z) * w).sum()
        with torch.no_grad():
            (z if what == "input" else w).mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


def test_a_result_that_was_changed_is_kept_as_it_is():
    x = torch.randn(4, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def gradient() -> Tensor:
        w = torch.ones(4, requires_grad=True)
        h = torch.nn.functional.gelu(x)
        with torch.no_grad():
            h.clamp_(max=0.1)
        return torch.autograd.grad((h * w).sum(), w)[0]

    with kept_small(torch.float32):
        small = gradient()
    assert torch.equal(small, gradient())


def test_a_second_derivative_is_right():
    x = torch.randn(4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with kept_small(torch.float32):
        small = (torch.nn.functional.silu(x) * x).sum()
    plain = (torch.nn.functional.silu(x) * x).sum()
    first = [torch.autograd.grad(y, x, create_graph=True)[0] for y in (small, plain)]
    second = [torch.autograd.grad(g.sum(), x)[0] for g in first]
    assert torch.equal(first[0], first[1])
    torch.testing.assert_close(second[0], second[1])
