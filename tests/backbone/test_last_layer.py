from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tiny
from softprompt.backbone import last_layer
from softprompt.backbone.backbone import Backbone

LENGTH = 6
AT = torch.tensor([[5, 5], [2, 4], [3, 0]])


def rows(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Three rows, one of them padded on the side where its kind is."""
    ids = torch.randint(backbone.vocabulary_size, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    if backbone.pads_in_front:
        mask[1, :2] = False
    else:
        mask[2, 4:] = False
    return backbone.embed(ids).detach().requires_grad_(), mask


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.ENCODERS])
def test_what_is_read_does_not_change(family: str):
    backbone = tiny.backbone(family)
    inputs, mask = rows(backbone)
    whole = backbone.outputs(inputs, mask).states
    whole = whole.gather(1, AT[..., None].expand(-1, -1, whole.shape[-1]))
    outputs = backbone.outputs(inputs, mask, at=AT)
    torch.testing.assert_close(outputs.states, whole, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(whole)
    (ours,) = torch.autograd.grad(outputs.states, inputs, upstream)
    (theirs,) = torch.autograd.grad(whole, inputs, upstream)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def computed(backbone: Backbone, inputs: Tensor, mask: Tensor, at: Tensor | None) -> list[int]:
    """How many positions each product of the last layer is computed for."""
    counted: list[int] = []
    products = last_layer.products_in_last_layer(backbone.model, backbone.sites)
    # Registered first, they see an output before it is put back among the others.
    hooks = [
        product.register_forward_hook(lambda m, i, output: counted.append(output.shape[:-1].numel()))
        for product in products
    ]
    try:
        backbone.outputs(inputs, mask, at=at, head=False)
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(counted)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "modernbert"])
def test_what_is_not_read_is_not_computed(family: str):
    backbone = tiny.backbone(family)
    inputs, mask = rows(backbone)
    every, asked = computed(backbone, inputs, mask, None), computed(backbone, inputs, mask, AT)
    assert set(every) == {3 * LENGTH}
    # Two positions of a row, once where they are the same; queries, keys and values are those of all.
    assert set(asked) == {5, 3 * LENGTH}
    assert asked.count(5) >= 2


def test_nothing_is_left_behind_on_the_model():
    backbone = tiny.backbone()
    inputs, mask = rows(backbone)
    backbone.outputs(inputs, mask, at=AT)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.model.modules())


def test_a_layer_that_is_recomputed_is_run_whole():
    backbone = tiny.backbone(gradient_checkpointing=True)
    inputs, mask = rows(backbone)
    assert set(computed(backbone, inputs, mask, AT)) == {3 * LENGTH}
