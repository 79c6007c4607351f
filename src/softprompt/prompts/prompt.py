"""The values of a prompt: what a method yields and what is served, whatever it was learned by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from softprompt.errors import ArtifactError

Sites = Mapping[str, tuple[int, int, int]]
"""For each attention site, in calling order, its name and `(H, key width, value width)`."""


class Values(ABC):
    """A prompt's values.

    Attributes:
        KIND: how a file calls them.
    """

    KIND: ClassVar[str]

    @property
    @abstractmethod
    def tokens(self) -> int:
        """P, how many positions they fill."""

    @property
    @abstractmethod
    def at_input(self) -> Tensor | None:
        """`[P, D]`, where they stand at the input; None where they stand inside the attention."""

    @property
    @abstractmethod
    def inside(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None:
        """Keys and values, one `[P, H, E]` per site, where they stand inside the attention; None otherwise."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name: float32, on the CPU."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`.

        Raises:
            ArtifactError: a name or a shape is not what it must be.
        """

    @abstractmethod
    def misfit(self, width: int, sites: Sites) -> str | None:
        """Why they cannot stand in a model; None where they can.

        Args:
            width: D of the model's input embeddings.
            sites: its attention sites.
        """

    @abstractmethod
    def describe(self) -> str:
        """In a few words, for people: how many there are of what."""

    @property
    def nbytes(self) -> int:
        """Size of what is stored, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


@dataclass(frozen=True)
class VirtualTokens(Values):
    """P vectors that stand where words would stand.

    Attributes:
        embeddings: `[P, D]` floating point, on the scale of the model's embedded words.
    """

    KIND: ClassVar[str] = "virtual-tokens"

    embeddings: Tensor

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or not self.embeddings.is_floating_point():
            raise ArtifactError(
                f"virtual tokens are {self.embeddings.dtype} of shape {list(self.embeddings.shape)}, "
                "not floating point of shape [P, D]"
            )

    @property
    def tokens(self) -> int:
        return self.embeddings.shape[0]

    @property
    def at_input(self) -> Tensor:
        return self.embeddings

    @property
    def inside(self) -> None:
        return None

    def tensors(self) -> dict[str, Tensor]:
        return {"embeddings": _stored(self.embeddings)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        if set(tensors) != {"embeddings"}:
            raise ArtifactError(f"the file of virtual tokens holds {sorted(tensors)}, not ['embeddings']")
        return cls(tensors["embeddings"])

    def misfit(self, width: int, sites: Sites) -> str | None:
        own = self.embeddings.shape[1]
        return None if own == width else f"its vectors have {own} numbers, the model's embeddings {width}"

    def describe(self) -> str:
        return f"{self.tokens} virtual tokens, each a vector of {self.embeddings.shape[1]} numbers"


@dataclass(frozen=True)
class Prefix(Values):
    """Keys and values of P positions in front, at every attention site; seen from everywhere, whatever the window.

    Attributes:
        sites: names of the attention sites, in calling order.
        keys: one `[P, H, E]` per site, as attention receives them (after any rotation).
        values: one `[P, H, E]` per site.
    """

    KIND: ClassVar[str] = "prefix"

    sites: tuple[str, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        tensors = (*self.keys, *self.values)
        if not self.sites or len(self.keys) != len(self.sites) or len(self.values) != len(self.sites):
            raise ArtifactError(
                f"a prefix for {len(self.sites)} sites has {len(self.keys)} keys and {len(self.values)} values"
            )
        if any(t.ndim != 3 or t.shape[0] != self.tokens for t in tensors):
            raise ArtifactError(f"a prefix has shapes {[list(t.shape) for t in tensors]}, not [P, H, E] with one P")

    @property
    def tokens(self) -> int:
        return self.keys[0].shape[0]

    @property
    def at_input(self) -> None:
        return None

    @property
    def inside(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return self.keys, self.values

    def tensors(self) -> dict[str, Tensor]:
        stored = {}
        for number, site in enumerate(self.sites):
            # The number keeps the calling order, which the names alone would not.
            stored[f"{number:04d}.{site}.keys"] = _stored(self.keys[number])
            stored[f"{number:04d}.{site}.values"] = _stored(self.values[number])
        return stored

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        names = sorted(name.removesuffix(".keys") for name in tensors if name.endswith(".keys"))
        if sorted(tensors) != sorted(f"{name}.{kind}" for name in names for kind in ("keys", "values")):
            raise ArtifactError(f"the file of a prefix holds {sorted(tensors)}, not NUMBER.SITE.keys and .values each")
        return cls(
            tuple(name.partition(".")[2] for name in names),
            tuple(tensors[f"{name}.keys"] for name in names),
            tuple(tensors[f"{name}.values"] for name in names),
        )

    def misfit(self, width: int, sites: Sites) -> str | None:
        own = [
            (name, (key.shape[1], key.shape[2], value.shape[2]))
            for name, key, value in zip(self.sites, self.keys, self.values, strict=True)
        ]
        if len(own) != len(sites):
            return f"it has keys and values for {len(own)} attention sites, the model has {len(sites)}"
        for mine, theirs in zip(own, sites.items(), strict=True):
            if mine != theirs:
                return f"at {theirs[0]} the model has (heads, key width, value width) {theirs[1]}, the prefix {mine}"
        return None

    def describe(self) -> str:
        return f"a prefix of {self.tokens} positions, keys and values at {len(self.sites)} attention sites"


KINDS: dict[str, type[VirtualTokens] | type[Prefix]] = {kind.KIND: kind for kind in (VirtualTokens, Prefix)}
"""The kinds of values, by the names files use."""
