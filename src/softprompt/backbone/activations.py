"""What a pass keeps for the backward pass, kept in less memory; gradients stay what they were, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.nn import functional as F

_AGAIN: dict[str, Callable[[Any], Tensor]] = {
    "SiluBackward0": lambda node: F.silu(node._saved_self),
    "GeluBackward0": lambda node: F.gelu(node._saved_self, approximate=node._saved_approximate),
}
"""Functions that cost little to apply again: what they were applied to is kept anyway, for their own gradient."""


@dataclass(frozen=True)
class _Applied:
    """The result of a function that is applied again when it is asked for."""

    node: Node


@dataclass(frozen=True)
class _Narrow:
    """A copy in float32 of numbers that had fewer bits."""

    numbers: Tensor


def kept_small(dtype: torch.dtype) -> AbstractContextManager[object]:
    """Meanwhile results of activation functions are not kept, and copies of a layer's input are kept in `dtype`.

    A gated layer keeps three tensors of its inner width for each token, the widest there are; one of them, the gate's
    activation, follows from another. A normalisation in float32 keeps a copy of its 16 bit input twice the size.

    Args:
        dtype: of the model.
    """
    last: tuple[ReferenceType[Tensor], _Narrow] | None = None

    def pack(tensor: Tensor) -> Tensor | _Applied | _Narrow:
        nonlocal last
        node = tensor.grad_fn
        if node is None:
            return tensor
        if node.name() in _AGAIN:
            return _Applied(node)
        if tensor.dtype != torch.float32 or dtype == torch.float32 or not _copies(node, dtype):
            return tensor
        # A normalisation saves its copy for two operations, one after the other.
        if last is None or last[0]() is not tensor:
            last = ref(tensor), _Narrow(tensor.detach().to(dtype))
        return last[1]

    def unpack(kept: Tensor | _Applied | _Narrow) -> Tensor:
        if isinstance(kept, _Applied):
            return _AGAIN[kept.node.name()](kept.node)
        if isinstance(kept, _Narrow):
            return kept.numbers.float()
        return kept

    return saved_tensors_hooks(pack, unpack)


def _copies(node: Node, dtype: torch.dtype) -> bool:
    """Whether what a node made is a copy of numbers of `dtype`."""
    if node.name() != "ToCopyBackward0":
        return False
    maker, number = node.next_functions[0]
    return maker is not None and maker._input_metadata[number].dtype == dtype
