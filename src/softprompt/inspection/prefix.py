"""What a prefix has become: how long its keys and values are at each attention site, how far from where they started,
and how much alike its positions are.

No word is near a key or a value: what a word's are depends on all that stands before it and on where it stands, so the
vocabulary has none of its own that could be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.saved import SavedPrompt


@dataclass(frozen=True)
class Part:
    """The keys or the values of P positions at one attention site, those of all heads as one vector a position.

    Attributes:
        norms: `[P]` lengths (L2).
        start_norms: `[P]` lengths before training; None where the start is not known.
        drifts: `[P]` distances (L2) from where they started; None likewise.
        cosine: mean similarity of direction of two positions, from -1 to 1 (they are all one direction); None where
            there is one position.
    """

    norms: tuple[float, ...]
    start_norms: tuple[float, ...] | None
    drifts: tuple[float, ...] | None
    cosine: float | None


@dataclass(frozen=True)
class Site:
    """An attention site: its name, and what of the prefix stands there."""

    name: str
    keys: Part
    values: Part


@dataclass(frozen=True)
class PrefixInspection:
    """A prefix.

    Attributes:
        positions: P.
        sites: in calling order.
        key_cosines, value_cosines: `[P, P]` similarity of direction of each two positions, means over the sites.
    """

    positions: int
    sites: tuple[Site, ...]
    key_cosines: tuple[tuple[float, ...], ...]
    value_cosines: tuple[tuple[float, ...], ...]


@torch.no_grad()
def inspect_prefix(prompt: SavedPrompt, sites: Sequence[str]) -> PrefixInspection:
    """Compare a prefix with its start and its positions with each other.

    Args:
        prompt: one that stands inside the attention; read with `training=True` if drift is wanted.
        sites: names of the attention sites, in calling order.
    """
    keys, values = _sides(prompt.values.inside)
    began = type(prompt.values).from_tensors(prompt.state.start) if prompt.state else None
    start_keys, start_values = _sides(began.inside) if began else (None, None)
    return PrefixInspection(
        prompt.values.tokens,
        tuple(
            Site(
                name,
                _part(keys[i], start_keys[i] if start_keys else None),
                _part(values[i], start_values[i] if start_values else None),
            )
            for i, name in enumerate(sites)
        ),
        *(_rows(torch.stack([_cosines(side) for side in sides]).mean(dim=0)) for sides in (keys, values)),
    )


def _sides(inside: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] | None) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values, one `[P, H * E]` a site each."""
    assert inside is not None, "it stands inside the attention"
    keys, values = inside
    return [t.float().flatten(1) for t in keys], [t.float().flatten(1) for t in values]


def _part(now: Tensor, start: Tensor | None) -> Part:
    pairs = len(now) * (len(now) - 1)
    return Part(
        tuple(now.norm(dim=1).tolist()),
        None if start is None else tuple(start.norm(dim=1).tolist()),
        None if start is None else tuple((now - start).norm(dim=1).tolist()),
        float(_cosines(now).fill_diagonal_(0).sum() / pairs) if pairs else None,
    )


def _cosines(rows: Tensor) -> Tensor:
    unit = F.normalize(rows, dim=1)
    return unit @ unit.T


def _rows(table: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in table.tolist())
