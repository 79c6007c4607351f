"""The one attention function: any transformers architecture reads a `Context` before its own tokens.

transformers routes attention through a registry and hands unknown keywords of `forward` down to it. `attend` is
registered once per base implementation; it puts a context's keys and values in front, widens the mask and calls the
implementation that was there before. Without the keyword `softprompt` it *is* that implementation.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask

from softprompt.backbone.context import Context, Stretch
from softprompt.errors import SourceError

KEYWORD = "softprompt"
_MASKS = {"sdpa": sdpa_mask, "eager": eager_mask}
_PREFIX = "softprompt_"


@dataclass
class Record:
    """What a forward pass left at each site.

    Attributes:
        keys: `[B, H, T, E]` of the pass's own tokens, by site; values likewise.
        windows: the sliding window the site was called with, or None.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    windows: dict[int, int | None] = field(default_factory=dict)

    def add(self, site: int, key: Tensor, value: Tensor, window: int | None) -> None:
        self.keys[site], self.values[site], self.windows[site] = key, value, window

    def stretches(self, mask: Tensor) -> list[Stretch]:
        """One `Stretch` per row, padding left out.

        Args:
            mask: `[B, T]` bool, True for real tokens, which stand in one run.
        """
        first = mask.int().argmax(dim=1).tolist()
        length = mask.sum(dim=1).tolist()
        sites = sorted(self.keys)

        def row(tensors: dict[int, Tensor], b: int) -> tuple[Tensor, ...]:
            return tuple(tensors[s][b, :, first[b] : first[b] + length[b]].transpose(0, 1) for s in sites)

        return [Stretch(row(self.keys, b), row(self.values, b)) for b in range(mask.shape[0])]


@dataclass(frozen=True)
class Reading:
    """What one forward pass reads besides its own tokens, and what it leaves behind.

    Attributes:
        sites: the site indices of each attention module, by identity: one for each time it is called in a pass.
        positions: `[B, T]` int64, the position of each query in the whole sequence, context included.
        context: keys and values in front, or None.
        rows: `[B]` int64, the entry each row reads; None where all read the only one, or row b reads entry b.
        record: filled with the keys and values of this pass's own tokens.
        past: how many own keys stand before those of this pass, in a cache.
    """

    sites: Mapping[int, Sequence[int]]
    positions: Tensor
    context: Context | None = None
    rows: Tensor | None = None
    record: Record | None = None
    past: int = 0
    # Widened masks by what they were made from; each holds on to its mask, whose identity nothing else may then have.
    _masks: dict[Any, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict, compare=False, repr=False)
    _calls: Counter[int] = field(default_factory=Counter, compare=False, repr=False)

    def site(self, module: nn.Module) -> int:
        """The site that a module is at this call; layers that share their weights share it."""
        known = self.sites[id(module)]
        self._calls[id(module)] += 1
        return known[(self._calls[id(module)] - 1) % len(known)]

    def before(self, site: int, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, H, P, E]` that stand before each row at `site`."""
        assert self.context is not None
        return self._per_row(self.context.keys[site], batch), self._per_row(self.context.values[site], batch)

    def _per_row(self, table: Tensor, batch: int) -> Tensor:
        if self.rows is not None:
            return table.index_select(0, self.rows)
        return table.expand(batch, *table.shape[1:])

    def widen(self, mask: Tensor | None, query: Tensor, key: Tensor, causal: bool, window: int | None) -> Tensor | None:
        """The mask over context and own keys, `[B, 1 or heads, T, P + S]`; one for the whole batch where rows agree.

        Args:
            mask: what the model made for its own S keys: bool (True attends), additive float, or None.
            query: `[B, heads, T, E]`.
            key: `[B, H, S, E]`, own keys only.
            causal: what None means for T > 1: query t sees keys 0..t, or everything.
            window: a key is forgotten from this distance on; None for never.
        """
        slot = (id(mask), query.shape[2], key.shape[2], causal, window)
        if slot not in self._masks:
            self._masks[slot] = mask, self._widen(mask, query, key, causal, window)
        return self._masks[slot][1]

    def _widen(
        self, mask: Tensor | None, query: Tensor, key: Tensor, causal: bool, window: int | None
    ) -> Tensor | None:
        assert self.context is not None
        length, own = query.shape[2], key.shape[2]
        lengths, pinned = self.context.lengths, self.context.pinned
        if self.rows is not None:
            lengths, pinned = lengths.index_select(0, self.rows), pinned.index_select(0, self.rows)
        column = torch.arange(self.context.width, device=query.device)
        seen = (column < lengths[:, None])[:, None, None, :].expand(-1, -1, length, -1)
        if window is not None:
            near = self.positions[:, None, :, None] - column < window
            seen = seen & (near | (column < pinned[:, None])[:, None, None, :])
        if mask is None:
            mask = torch.ones(1, 1, length, own, dtype=torch.bool, device=query.device)
            if causal:
                # Counted and not read off the positions, which a caller may choose. No row is padded, so key s is every
                # row's token s; a static cache may have keys yet to be filled.
                token = self.past + torch.arange(length, device=query.device)[None, None, :, None]
                mask = torch.arange(own, device=query.device) <= token
            if bool(seen.all()) and bool(mask.all()):
                return None
        batch = max(seen.shape[0], mask.shape[0])
        if mask.dtype != torch.bool:
            low = torch.finfo(mask.dtype).min
            seen = torch.zeros(seen.shape, dtype=mask.dtype, device=seen.device).masked_fill(~seen, low)
        seen, mask = seen.expand(batch, mask.shape[1], -1, -1), mask.expand(batch, -1, length, -1)
        return torch.cat([seen, mask], dim=-1)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    softprompt: Reading | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over a context's keys and values and the row's own; see `Reading`."""
    base = _implementation(module)
    if softprompt is None:
        return base(module, query, key, value, attention_mask, *args, **kwargs)
    site, window = softprompt.site(module), kwargs.get("sliding_window")
    if softprompt.record is not None:
        softprompt.record.add(site, key, value, window)
    if softprompt.context is not None:
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        attention_mask = softprompt.widen(attention_mask, query, key, causal, window)
        keys, values = softprompt.before(site, key.shape[0])
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        bias = kwargs.get("position_bias")
        if bias is not None:
            # What is learned has no place relative to a token.
            kwargs["position_bias"] = F.pad(bias, (keys.shape[2], 0))
    return base(module, query, key, value, attention_mask, *args, **kwargs)


def _implementation(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    name = str(getattr(module, "config")._attn_implementation).removeprefix(_PREFIX)  # noqa: B009
    # "eager" is not in the registry: each modeling file has its own.
    default = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return AttentionInterface().get_interface(name, default)


def route(model: PreTrainedModel) -> None:
    """Send the model's attention through `attend`. Changes nothing it computes.

    Raises:
        SourceError: the model's implementation is neither sdpa nor eager.
    """
    name = str(model.config._attn_implementation)
    if name.startswith(_PREFIX):
        return
    if name not in _MASKS:
        raise SourceError(
            f"attention implementation {name!r} is not supported",
            where=type(model).__name__,
            instead="Load the model with attn_implementation='sdpa' or 'eager'.",
        )
    model.set_attn_implementation(_PREFIX + name)


def register(function: Callable[..., tuple[Tensor, Tensor | None]]) -> None:
    """Have `function` called wherever attention is routed."""
    for name in _MASKS:
        AttentionInterface.register(_PREFIX + name, function)


register(attend)
for _name, _mask in _MASKS.items():
    AttentionMaskInterface.register(_PREFIX + _name, _mask)
