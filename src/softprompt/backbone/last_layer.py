"""Of the last layer, what stands behind its attention is computed for the positions that are read alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from softprompt.backbone.sites import Site


def products_in_last_layer(model: PreTrainedModel, sites: Sequence[Site]) -> list[nn.Module]:
    """The matrix products of the layer that attends last; none where layers cannot be told."""
    if not sites:
        return []
    last, layers = sites[-1].name, dict(model.named_modules())
    names = [n for n, m in layers.items() if isinstance(m, GradientCheckpointingLayer) and last.startswith(f"{n}.")]
    if not names:
        return []
    return [m for m in layers[max(names, key=len)].modules() if isinstance(m, (nn.Linear, Conv1D))]


@contextmanager
def narrowed(products: Sequence[nn.Module], at: Tensor, length: int, attended: Callable[[], bool]) -> Iterator[None]:
    """Meanwhile these products are computed at some positions only, and yield zeros at the others.

    Exact for what is read, since nothing behind the last attention looks from one position to another; what stands at
    the others is of no meaning.

    Args:
        products: of the last layer.
        at: `[B, S]` int64, the positions.
        length: T, of a row.
        attended: whether the last attention is over: before it, keys and values are needed of all positions.
    """
    places = torch.arange(len(at), device=at.device)[:, None] * length + at
    places = places.flatten().unique()
    shape, picked = (len(at), length), set[int]()

    def pick(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # A layer that names what it gives is run as it is.
        if not arguments or not attended() or arguments[0].shape[:-1] != shape:
            return None
        picked.add(id(module))
        return (arguments[0].flatten(0, 1).index_select(0, places), *arguments[1:])

    def put_back(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if id(module) not in picked:
            return None
        picked.remove(id(module))
        whole = output.new_zeros(len(at) * length, output.shape[-1])
        return whole.index_copy(0, places, output).view(*shape, -1)

    hooks = [module.register_forward_pre_hook(pick) for module in products]
    hooks += [module.register_forward_hook(put_back) for module in products]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
