"""What a pass keeps for the backward pass, kept in less memory; gradients stay what they were, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.nn import functional as F

_AGAIN: dict[str, Callable[..., Tensor]] = {
    "SiluBackward0": F.silu,
    "GeluBackward0": F.gelu,
}
"""Functions that cost little to apply again: what they were applied to is kept anyway, for their own gradient."""


WORTH = 2**15
"""Numbers in a pass's input from which on it pays: a tensor that is kept costs some microseconds, whatever its size."""


class _Kept(NamedTuple):
    """A tensor, as it was: torch leaves it to whoever packs a tensor to see that nobody changes it meanwhile."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Kept:
        return cls(tensor, tensor._version)

    def unpack(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor {list(self.tensor.shape)} that the backward pass needs was changed in place: it is at "
                f"version {self.tensor._version}, expected was {self.version}"
            )
        return self.tensor


class _Applied(NamedTuple):
    """The result of a function that is applied again when it is asked for."""

    function: Callable[..., Tensor]
    to: _Kept
    options: Mapping[str, Any]

    def unpack(self) -> Tensor:
        return self.function(self.to.unpack(), **self.options)


class _Narrow(NamedTuple):
    """A copy in float32 of numbers that had fewer bits."""

    numbers: Tensor

    def unpack(self) -> Tensor:
        return self.numbers.float()


_Packed = _Kept | _Applied | _Narrow


def kept_small(dtype: torch.dtype) -> AbstractContextManager[object]:
    """Meanwhile results of activation functions are not kept, and copies of a layer's input are kept in `dtype`.

    A gated layer keeps three tensors of its inner width for each token, the widest there are; one of them, the gate's
    activation, follows from another. A normalisation in float32 keeps a copy of its 16 bit input twice the size.

    Args:
        dtype: of the model.
    """
    last: tuple[ReferenceType[Tensor], _Packed] | None = None

    def pack(tensor: Tensor) -> _Packed:
        nonlocal last
        node = tensor.grad_fn
        # Whatever was changed since it was made is no longer what made it.
        if node is None or tensor._version:
            return _Kept.of(tensor)
        name = node.name()
        if name in _AGAIN:
            options = {"approximate": node._saved_approximate} if name == "GeluBackward0" else {}  # type: ignore[attr-defined]
            return _Applied(_AGAIN[name], _Kept.of(node._saved_self), options)  # type: ignore[attr-defined]
        if tensor.dtype != torch.float32 or dtype == torch.float32 or not _copies(node, dtype):
            return _Kept.of(tensor)
        # A normalisation saves its copy for two operations, one after the other.
        if last is None or last[0]() is not tensor:
            last = ref(tensor), _Narrow(tensor.detach().to(dtype))
        return last[1]

    return saved_tensors_hooks(pack, _unpacked)


def _unpacked(packed: _Packed) -> Tensor:
    return packed.unpack()


def _copies(node: Node, dtype: torch.dtype) -> bool:
    """Whether what a node made is a copy of numbers of `dtype`."""
    if node.name() != "ToCopyBackward0":
        return False
    maker, number = node.next_functions[0]
    return maker is not None and maker._input_metadata[number].dtype == dtype
