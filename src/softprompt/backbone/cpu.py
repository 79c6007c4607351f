"""Attention on the CPU without copies: over a context and own keys, and of query heads that share a key head.

Attention over two sets of keys is the mean of the attention over each, weighted by the sums of their exponentials; the
flash kernel returns the logarithm of that sum. So a context that many rows read is one matrix product for all of them,
and its keys and values are never copied. The kernel gives no gradient through the logarithm it returns; `_Merged` has
one of its own: with the output and the logarithm over both sets, the kernel's backward pass over one set yields
exactly that set's part of the gradient.

Query heads that share a key head (grouped-query attention) are further queries of it, so keys are not repeated for
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    total: Tensor,
    bias: Tensor | None,
    scale: float | None,
    *,
    causal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value. In float32 whatever they are; see `SHORT`."""
    inputs = (t.float() for t in (gradient, query, key, value, out))
    bias = None if bias is None else bias.float()
    found = _kernel_backward(*inputs, total.float(), 0.0, causal, attn_mask=bias, scale=scale)
    to_query, to_key, to_value = (t.to(query.dtype) for t in found)
    return to_query, to_key, to_value


SHORT = 256
"""Tokens of a row up to which the kernel's backward pass takes more than twice as long for 16 bits as for float32."""


def fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these, `[B, heads, T, E]` and `[B, H, S, E]`. It is the CPU's."""
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype
        and query.dtype in (torch.float32, torch.bfloat16)
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and query.shape[1] % key.shape[1] == 0
        and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        and not torch.compiler.is_compiling()
    )


def pays(query: Tensor, context_key: Tensor) -> bool:
    """Whether two passes, merged, cost less than one over keys that are copied: if the context is far the longer part.

    Measured on two cores, forward and backward: a third faster at ten times the length, even at four times.
    """
    return context_key.shape[2] >= 4 * query.shape[2]


@dataclass(frozen=True)
class Groups:
    """Which of B rows read which of K context entries.

    Attributes:
        rows: `[B]` int64, the entry of each row.
        entries: K.
    """

    rows: Tensor
    entries: int

    @cached_property
    def longest(self) -> int:
        """R, the rows of the entry that most rows read."""
        return int(self.rows.bincount(minlength=self.entries).max())

    @cached_property
    def members(self) -> Tensor:
        """`[K * R]` int64, the rows of each entry; where it has fewer than R, the last row again and again."""
        order = self.rows.argsort(stable=True)
        counts = self.rows.bincount(minlength=self.entries)
        first = counts.cumsum(0) - counts
        place = first[:, None] + torch.arange(self.longest, device=order.device)
        return order[torch.minimum(place, (first + counts - 1)[:, None])].flatten()

    @cached_property
    def places(self) -> Tensor:
        """`[B]` int64, where in `members` each row stands first."""
        order = self.rows.argsort(stable=True)
        counts = self.rows.bincount(minlength=self.entries)
        first = (counts.cumsum(0) - counts)[self.rows]
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        return self.rows * self.longest + rank - first

    @cached_property
    def repeated(self) -> Tensor:
        """`[K * R]` bool, where `members` repeats a row."""
        first = torch.zeros(len(self.members), dtype=torch.bool, device=self.rows.device)
        first[self.places] = True
        return ~first

    @property
    def worth(self) -> bool:
        """Whether computing all groups as large as the largest is less than a copy of its entry for each row."""
        return self.entries * self.longest <= 2 * len(self.rows)


@dataclass(frozen=True)
class _Layout:
    """How rows are laid out for the kernel: B rows as K entries with R rows each, heads as H with G queries each."""

    entries: int
    heads: int
    groups: Groups | None = None

    def fold(self, x: Tensor, *, once: bool = False) -> Tensor:
        """`[B, heads, T, ...]` -> `[K, H, G * R * T, ...]`; `once` leaves zeros where a row is repeated."""
        if self.groups is not None:
            x = x.index_select(0, self.groups.members)
            if once:
                x[self.groups.repeated] = 0
        rows, heads, length, *rest = x.shape
        x = x.reshape(self.entries, rows // self.entries, self.heads, heads // self.heads, length, *rest)
        # [K, R, H, G, T] -> [K, H, G, R, T]
        return x.permute(0, 2, 3, 1, 4, *range(5, x.dim())).reshape(self.entries, self.heads, -1, *rest)

    def unfold(self, x: Tensor, heads: int, length: int) -> Tensor:
        """The way back, to `[B, heads, T, ...]`."""
        rest = x.shape[3:]
        x = x.reshape(self.entries, self.heads, heads // self.heads, -1, length, *rest)
        x = x.permute(0, 3, 1, 2, 4, *range(5, x.dim())).reshape(-1, heads, length, *rest)
        return x if self.groups is None else x.index_select(0, self.groups.places)

    def bias(self, mask: Tensor | None, query: Tensor) -> Tensor | None:
        """A mask `[B or 1, 1, T, N]` as the kernel adds it: `[K or 1, 1, G * R * T, N]`."""
        if mask is None:
            return None
        if mask.dtype == torch.bool:
            # Not minus infinity: a query that sees nothing of one set must have a finite share of it, which is zero.
            low = torch.finfo(query.dtype).min
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, low)
        mask = mask.clamp_min(torch.finfo(query.dtype).min)
        rows, heads = query.shape[:2]
        if mask.shape[0] == 1 and self.entries == rows and self.groups is None:
            return mask.to(query.dtype).repeat(1, 1, heads // self.heads, 1)
        each = mask.to(query.dtype).expand(rows, heads // self.heads, *mask.shape[2:])
        return _Layout(self.entries, 1, self.groups).fold(each)


@dataclass(frozen=True)
class Split:
    """How queries meet the two sets of keys; the same at all layers of a pass that have the same heads and masks."""

    own: _Layout
    context: _Layout
    own_bias: Tensor | None
    context_bias: Tensor | None

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, entries: int, groups: Groups | None, seen: Tensor | None, own: Tensor | None
    ) -> Split:
        """Lay out a pass.

        Args:
            query, key: as in `merged_attention`; their shapes and dtype matter.
            entries: K, of the context.
            groups: which row reads which entry; None where all read the only one, or row b reads entry b.
            seen: `[B or 1, 1, T, P]` bool, which of the context a query sees; None for all.
            own: `[B or 1, 1, T, S]`, which of its own keys it sees: bool, or added to the scores; None for all.
        """
        mine, theirs = _Layout(query.shape[0], key.shape[1]), _Layout(entries, key.shape[1], groups)
        return cls(mine, theirs, mine.bias(own, query), theirs.bias(seen, query))


def merged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context_key: Tensor,
    context_value: Tensor,
    split: Split,
    scale: float | None,
) -> Tensor:
    """What each query finds in its context and in its own keys, `[B, heads, T, E]`.

    Args:
        query: `[B, heads, T, E]`.
        key, value: `[B, H, S, E]`; `heads` is a multiple of H.
        context_key, context_value: `[K, H, P, E]`.
        split: how they meet.
        scale: of the scores; None for `1 / sqrt(E)`.
    """
    found: Tensor = _Merged.apply(query, key, value, context_key, context_value, split, scale)
    return found


def joined_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context_key: Tensor,
    context_value: Tensor,
    rows: Tensor | None,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """The same in one pass, the keys of each row's context laid before its own, `[B, heads, T, E]`.

    Args:
        query, key, value, context_key, context_value, scale: as in `merged_attention`.
        rows: `[B]` int64, the entry each row reads; None where all read the only one, or row b reads entry b.
        bias: over both sets, as `grouped_bias` makes it.
    """
    found: Tensor = _Joined.apply(query, key, value, context_key, context_value, rows, bias, scale)
    return found


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float | None) -> Tensor:
    """What each query finds in keys of its row, `[B, heads, T, E]`.

    Args:
        query, key, value, scale: as in `merged_attention`.
        bias: as `grouped_bias` makes it.
    """
    layout = _Layout(*key.shape[:2])
    out = F.scaled_dot_product_attention(layout.fold(query), key, value, attn_mask=bias, scale=scale)
    return layout.unfold(out, query.shape[1], query.shape[2])


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """What each query finds in the keys of its row up to its own, `[B, heads, T, E]`.

    Args:
        query, key, value, scale: as in `merged_attention`, with as many keys as queries.
    """
    found: Tensor = _Causal.apply(query, key, value, scale)
    return found


def grouped_bias(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """A mask `[B or 1, 1, T, S]`, bool or added to the scores, for `grouped_attention`; None where all is seen."""
    return _Layout(*key.shape[:2]).bias(mask, query)


class _Causal(torch.autograd.Function):
    """The kernel passes over what a query may not see, so key heads are repeated for it rather than queries folded."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value, scale = inputs
        groups = query.shape[1] // key.shape[1]
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        out, total = _forward(query, keys, values, 0.0, True, scale=scale)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.scale = scale
        found: Tensor = out
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total = ctx.saved_tensors
        groups = query.shape[1] // key.shape[1]
        keys, values = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        to_query, *to_others = _backward(gradients[0], query, keys, values, out, total, None, ctx.scale, causal=True)
        to_key, to_value = (t.unflatten(1, (-1, groups)).sum(dim=2) for t in to_others)
        return to_query, to_key, to_value, None


class _Joined(torch.autograd.Function):
    """Lays keys side by side once more in the backward pass: they would be most of what a layer keeps for it."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value, context_key, context_value, rows, bias, scale = inputs
        layout = _Layout(*key.shape[:2])
        keys, values = _side_by_side(context_key, key, rows), _side_by_side(context_value, value, rows)
        out, total = _forward(layout.fold(query), keys, values, 0.0, False, attn_mask=bias, scale=scale)
        ctx.save_for_backward(query, key, value, context_key, context_value, out, total)
        ctx.rows, ctx.bias, ctx.scale = rows, bias, scale
        return layout.unfold(out, query.shape[1], query.shape[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, context_key, context_value, out, total = ctx.saved_tensors
        layout = _Layout(*key.shape[:2])
        keys, values = _side_by_side(context_key, key, ctx.rows), _side_by_side(context_value, value, ctx.rows)
        to_query, to_keys, to_values = _backward(
            layout.fold(gradients[0]),
            layout.fold(query),
            keys,
            values,
            out,
            total,
            ctx.bias,
            ctx.scale,
        )
        width = context_key.shape[2]

        def to_context(to_all: Tensor, table: Tensor) -> Tensor:
            to_rows = to_all[:, :, :width]
            if ctx.rows is not None:
                return torch.zeros_like(table).index_add(0, ctx.rows, to_rows)
            return to_rows.sum_to_size(table.shape)

        of_keys, of_values = ctx.needs_input_grad[3:5]
        return (
            layout.unfold(to_query, query.shape[1], query.shape[2]),
            to_keys[:, :, width:],
            to_values[:, :, width:],
            to_context(to_keys, context_key) if of_keys else None,
            to_context(to_values, context_value) if of_values else None,
            None,
            None,
            None,
        )


def _side_by_side(table: Tensor, own: Tensor, rows: Tensor | None) -> Tensor:
    """`[K, H, P, E]` of a context and `[B, H, S, E]` of rows -> `[B, H, P + S, E]`."""
    each = table.expand(own.shape[0], *table.shape[1:]) if rows is None else table.index_select(0, rows)
    return torch.cat([each, own], dim=2)


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value, context_key, context_value, split, scale = inputs
        _, heads, length, _ = query.shape

        def part(layout: _Layout, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
            out, total = _forward(layout.fold(query), keys, values, 0.0, False, attn_mask=bias, scale=scale)
            return layout.unfold(out, heads, length), layout.unfold(total, heads, length)

        out, total = part(split.context, context_key, context_value, split.context_bias)
        own_out, own_total = part(split.own, key, value, split.own_bias)
        both = torch.logaddexp(total, own_total)
        out = torch.lerp(out.float(), own_out.float(), (own_total - both).exp()[..., None]).to(query.dtype)
        ctx.save_for_backward(query, key, value, context_key, context_value, out, both)
        ctx.split, ctx.scale = split, scale
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, context_key, context_value, out, both = ctx.saved_tensors
        _, heads, length, _ = query.shape

        def part(layout: _Layout, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
            folded = [layout.fold(gradients[0], once=True), *(layout.fold(t) for t in (query, out, both))]
            to_queries, to_keys, to_values = _backward(
                folded[0], folded[1], keys, values, folded[2], folded[3], bias, ctx.scale
            )
            return layout.unfold(to_queries, heads, length), to_keys, to_values

        split = ctx.split
        to_query, to_key, to_value = part(split.own, key, value, split.own_bias)
        from_context, to_context_key, to_context_value = part(
            split.context, context_key, context_value, split.context_bias
        )
        of_keys, of_values = ctx.needs_input_grad[3:5]
        return (
            to_query + from_context,
            to_key,
            to_value,
            to_context_key if of_keys else None,
            to_context_value if of_values else None,
            None,
            None,
        )
