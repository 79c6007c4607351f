"""Where in its whole sequence each token stands, what was computed before included."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from softprompt.backbone.context import Context


def offset_positions(mask: Tensor, context: Context | None, rows: Tensor | None) -> Tensor:
    """Position of each token in its whole sequence, `[B, T]` int64; padding is given its neighbour's.

    Args:
        mask: `[B, T]` bool, True for real tokens.
        context: what stands before the rows, `rows` the entry each reads.
    """
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0) + context_lengths(context, rows)


def context_lengths(context: Context | None, rows: Tensor | None) -> Tensor | int:
    """How many positions stand before each row: `[B, 1]` int64, `[1, 1]` where all have one entry, 0 where none."""
    if context is None:
        return 0
    return (context.lengths if rows is None else context.lengths.index_select(0, rows))[:, None]


def cached_tokens(*caches: Any) -> int:
    """How many tokens the first cache that is there holds; 0 where there is none."""
    return next((int(cache.get_seq_length()) for cache in caches if cache is not None), 0)
