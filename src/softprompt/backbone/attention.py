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
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from softprompt.backbone import cpu
from softprompt.backbone.context import Context, Stretch
from softprompt.errors import SourceError

Made = TypeVar("Made")

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
    # What all layers have in common by what it was made from; each holds on to its mask, whose identity nothing else
    # may then have.
    _kept: dict[Any, tuple[Tensor | None, Any]] = field(default_factory=dict, compare=False, repr=False)
    _calls: Counter[int] = field(default_factory=Counter, compare=False, repr=False)

    def site(self, module: nn.Module) -> int:
        """The site that a module is at this call; layers that share their weights share it."""
        known = self.sites[id(module)]
        self._calls[id(module)] += 1
        return known[(self._calls[id(module)] - 1) % len(known)]

    @property
    def over(self) -> bool:
        """Whether all sites have been called."""
        return self._calls.total() == sum(len(calls) for calls in self.sites.values())

    def before(self, site: int, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, H, P, E]` that stand before each row at `site`."""
        assert self.context is not None
        return self._per_row(self.context.keys[site], batch), self._per_row(self.context.values[site], batch)

    def _per_row(self, table: Tensor, batch: int) -> Tensor:
        if self.rows is not None:
            return table.index_select(0, self.rows)
        return table.expand(batch, *table.shape[1:])

    def on_cpu(self, site: int, call: Call) -> Tensor:
        """What each query of a call finds, `[B, heads, T, E]`, without copying keys where that pays."""
        query, key, value = call.query, call.key, call.value
        if self.context is None and call.mask is None and call.causal and key.shape[2] == query.shape[2]:
            return cpu.causal_attention(query, key, value, call.scale)
        if self.context is None:
            bias = self._once("own", call, lambda: cpu.grouped_bias(self.own(call), query, key))
            return cpu.grouped_attention(query, key, value, bias, call.scale)
        context_key, context_value = self.context.keys[site], self.context.values[site]
        if cpu.pays(query, context_key):
            split = self._once("split", call, lambda: self._split(call, context_key))
            if split is not None:
                return cpu.merged_attention(query, key, value, context_key, context_value, split, call.scale)
        bias = self._once("wide", call, lambda: cpu.grouped_bias(self.widen(call), query, key))
        return cpu.joined_attention(query, key, value, context_key, context_value, self.rows, bias, call.scale)

    def _split(self, call: Call, context_key: Tensor) -> cpu.Split | None:
        entries, groups = context_key.shape[0], None
        if self.rows is not None:
            groups = cpu.Groups(self.rows, entries)
            if not groups.worth:
                return None
        return cpu.Split.of(call.query, call.key, entries, groups, self.seen(call), self.own(call))

    def _once(self, what: str, call: Call, make: Callable[[], Made]) -> Made:
        slot = (what, *call.alike())
        if slot not in self._kept:
            self._kept[slot] = call.mask, make()
        made: Made = self._kept[slot][1]
        return made

    def widen(self, call: Call) -> Tensor | None:
        """The mask over context and own keys, `[B or 1, 1 or heads, T, P + S]`; None where all is seen."""
        return self._once("mask", call, lambda: self._widen(call))

    def _widen(self, call: Call) -> Tensor | None:
        seen, mask = self.seen(call), self.own(call)
        assert self.context is not None
        if seen is None and mask is None:
            return None
        length, own = call.query.shape[2], call.key.shape[2]
        if seen is None:
            seen = torch.ones(1, 1, length, self.context.width, dtype=torch.bool, device=call.query.device)
        if mask is None:
            mask = torch.ones(1, 1, length, own, dtype=torch.bool, device=call.query.device)
        batch = max(seen.shape[0], mask.shape[0])
        if mask.dtype != torch.bool:
            low = torch.finfo(mask.dtype).min
            seen = torch.zeros(seen.shape, dtype=mask.dtype, device=seen.device).masked_fill(~seen, low)
        seen, mask = seen.expand(batch, mask.shape[1], -1, -1), mask.expand(batch, -1, length, -1)
        return torch.cat([seen, mask], dim=-1)

    def seen(self, call: Call) -> Tensor | None:
        """Which of its context each query sees, `[B or 1, 1, T, P]` bool; None for all."""
        assert self.context is not None
        lengths, pinned = self.context.lengths, self.context.pinned
        if self.rows is not None:
            lengths, pinned = lengths.index_select(0, self.rows), pinned.index_select(0, self.rows)
        column = torch.arange(self.context.width, device=call.query.device)
        seen = (column < lengths[:, None])[:, None, None, :].expand(-1, -1, call.query.shape[2], -1)
        if call.window is not None:
            near = self.positions[:, None, :, None] - column < call.window
            seen = seen & (near | (column < pinned[:, None])[:, None, None, :])
        return None if bool(seen.all()) else seen

    def own(self, call: Call) -> Tensor | None:
        """Which of its own keys each query sees: the model's mask; where it has none, `[1, 1, T, S]` bool or None."""
        length, own = call.query.shape[2], call.key.shape[2]
        if call.mask is not None or not call.causal:
            return call.mask
        # Counted and not read off the positions, which a caller may choose. No row is padded, so key s is every row's
        # token s; a static cache may have keys yet to be filled.
        token = self.past + torch.arange(length, device=call.query.device)[None, None, :, None]
        mask = torch.arange(own, device=call.query.device) <= token
        return None if bool(mask.all()) else mask


@dataclass(frozen=True)
class Call:
    """What a site is called with.

    Attributes:
        query: `[B, heads, T, E]`.
        key, value: `[B, H, S, E]`, the row's own.
        mask: what the model made for these keys: bool (True attends), additive float, or None.
        causal: what None means: query t sees keys 0..t, or everything.
        window: a key is forgotten from this distance on; None for never.
        scale: of the scores; None for `1 / sqrt(E)`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    window: int | None
    scale: float | None

    def alike(self) -> tuple[Any, ...]:
        """The same for calls of one pass that see the same."""
        return (id(self.mask), *self.query.shape[1:3], *self.key.shape[1:3], self.causal, self.window)

    @property
    def plain(self) -> bool:
        """Whether one mask serves all heads and nothing is learned in it."""
        return self.mask is None or (self.mask.shape[1] == 1 and not self.mask.requires_grad)


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
    window, causal = kwargs.get("sliding_window"), kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    call = Call(query, key, value, attention_mask, causal, window, kwargs.get("scaling"))
    site, context = softprompt.site(module), softprompt.context
    if softprompt.record is not None:
        softprompt.record.add(site, key, value, window)
    # Without a context nothing is saved where there is a key head for each query head; and where nothing is padded the
    # model's own way passes over what a token may not see.
    unpadded = attention_mask is None and causal and key.shape[2] == query.shape[2]
    slow = query.requires_grad and query.dtype != torch.float32 and query.shape[2] <= cpu.SHORT
    saves = context is not None or (slow if unpadded else key.shape[1] < query.shape[1])
    if (
        saves
        and base is sdpa_attention_forward
        and not args
        and _plain(kwargs)
        and call.plain
        and cpu.fits(query, key, value)
    ):
        return softprompt.on_cpu(site, call).transpose(1, 2).contiguous(), None
    if context is not None:
        attention_mask = softprompt.widen(call)
        keys, values = softprompt.before(site, key.shape[0])
        key, value = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
        bias = kwargs.get("position_bias")
        if bias is not None:
            # What is learned has no place relative to a token.
            kwargs["position_bias"] = F.pad(bias, (keys.shape[2], 0))
    return base(module, query, key, value, attention_mask, *args, **kwargs)


def _plain(options: Mapping[str, Any]) -> bool:
    """Whether nothing else than masks and scale bears on the scores."""
    return not options.get("dropout") and options.get("position_bias") is None


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
