"""Keys and values that stand before a batch: what was computed once and is read by many rows.

`Stretch` is what one sequence left behind; `Context` is the table a forward pass reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stretch:
    """Keys and values of P consecutive positions of one sequence, at every attention site.

    Attributes:
        keys: one `[P, H, E]` per site, as attention received them (rotary positions applied).
        values: one `[P, H, E]` per site; H and E may differ from those of the keys and from site to site.
        pinned: whether it is seen from everywhere, whatever the sliding window. Such a stretch stands first.
        mapped: whether it stands in a file that is mapped into memory, so that it takes none.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    pinned: bool = False
    mapped: bool = False

    @property
    def length(self) -> int:
        return self.keys[0].shape[0]

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def to(self, device: torch.device, dtype: torch.dtype) -> Stretch:
        """The same elsewhere, or in other numbers; itself where nothing changes."""
        if self.keys[0].device == device and self.keys[0].dtype == dtype:
            return self
        return Stretch(
            tuple(t.to(device, dtype) for t in self.keys), tuple(t.to(device, dtype) for t in self.values), self.pinned
        )

    def copy(self) -> Stretch:
        """The same values in memory of their own, without gradients: what is kept must not hold on to a whole pass."""

        def own(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(t.detach().clone(memory_format=torch.contiguous_format) for t in tensors)

        return Stretch(own(self.keys), own(self.values), self.pinned)


@dataclass(frozen=True)
class Context:
    """A table of K entries; entry k stands before every row that names it, at positions `0 .. lengths[k] - 1`.

    Attributes:
        keys: one `[K, H, P, E]` per site, P the longest entry; shorter entries are padded behind.
        values: one `[K, H, P, E]` per site.
        lengths: `[K]` int64, real positions of each entry.
        pinned: `[K]` int64, how many of them, from the first, are seen whatever the sliding window.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: Tensor
    pinned: Tensor

    @classmethod
    def of(cls, entries: Sequence[Sequence[Stretch]]) -> Context | None:
        """Lay each entry's stretches one behind the other. None where there is not a single position.

        One concatenation per site, so that gradients reach every stretch and no value is copied twice.
        """
        lengths = [sum(s.length for s in parts) for parts in entries]
        longest = max(lengths, default=0)
        if longest == 0:
            return None
        example = next(s for parts in entries for s in parts)

        def table(kind: str) -> tuple[Tensor, ...]:
            tensors = []
            for site, like in enumerate(getattr(example, kind)):
                pieces = []
                for parts, length in zip(entries, lengths, strict=True):
                    pieces += [getattr(s, kind)[site] for s in parts]
                    if length < longest:
                        pieces.append(like.new_zeros(longest - length, *like.shape[1:]))
                flat = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                tensors.append(flat.view(len(entries), longest, *like.shape[1:]).transpose(1, 2))
            return tuple(tensors)

        device = example.keys[0].device
        pinned = [sum(s.length for s in parts if s.pinned) for parts in entries]
        return cls(
            table("keys"),
            table("values"),
            torch.tensor(lengths, device=device),
            torch.tensor(pinned, device=device),
        )

    @property
    def size(self) -> int:
        """K, the number of entries."""
        return self.lengths.shape[0]

    @property
    def width(self) -> int:
        """P, positions of the longest entry."""
        return self.keys[0].shape[2]
