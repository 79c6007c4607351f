"""Rows whose answers are being written, token by token: each may come and go between two steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from softprompt.backbone.attention import Record
from softprompt.backbone.context import Context
from softprompt.run.forward import Encoded, Filling, Forward
from softprompt.run.plan import Tokens
from softprompt.text.examples import Example

_PORTION = 64
"""Positions by which the table of keys and values grows."""


class Live(ABC):
    """Rows that are being written, from 0."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def begin(
        self, examples: Sequence[Example], fillings: Sequence[Filling], which: Sequence[int], copies: Sequence[int]
    ) -> Tensor:
        """Take rows in, behind those that are there.

        Args:
            examples: rows, without answers.
            fillings: K prompts.
            which: for each row its prompt's index.
            copies: how many answers to each row are written; these stand side by side, and the row is read once.

        Returns:
            `[N, V]`, what each of the new rows might go on with: logits.
        """

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Write a token to every row; `[B, V]` logits of what each might go on with."""

    @abstractmethod
    def leave(self, row: int) -> None:
        """Take a row out. The last one takes its place."""


def live(forward: Forward) -> Live:
    """For whatever backbone there is."""
    return KeptRows(forward) if forward.share and forward.backbone.kind == "decoder" else RepeatedRows(forward)


class KeptRows(Live):
    """Rows of a decoder. What stands before the next token of a row is an entry of one table of keys and values.

    A token is then run as any row behind a context is: windows, positions, and prefixes that are seen from everywhere
    are what they are there, whatever the lengths of the rows beside it.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward, self._backbone = forward, forward.backbone
        # One [rows, H, room, E] per site, of which the rows that are there are the first.
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lengths: list[int] = []
        self._pinned: list[int] = []

    def __len__(self) -> int:
        return len(self._lengths)

    @torch.no_grad()
    def begin(
        self, examples: Sequence[Example], fillings: Sequence[Filling], which: Sequence[int], copies: Sequence[int]
    ) -> Tensor:
        ready = self._forward.prepare(examples, fillings, which)
        record = Record()
        outputs = self._backbone.outputs(
            ready.inputs_embeds, ready.mask, ready.context, ready.rows, at=ready.at, record=record
        )
        assert outputs.logits is not None, "a decoder speaks"
        first, own = ready.mask.int().argmax(dim=1).tolist(), ready.mask.sum(dim=1).tolist()
        entries = [0] * len(own)
        if ready.context is not None and ready.context.size > 1:
            entries = list(range(len(own))) if ready.rows is None else ready.rows.tolist()
        before = [0] if ready.context is None else ready.context.lengths.tolist()
        pinned = [0] if ready.context is None else ready.context.pinned.tolist()
        sources = [row for row, times in enumerate(copies) for _ in range(times)]
        slot = len(self)
        longest = max(before[entries[row]] + own[row] for row in sources)
        self._make_room(slot + len(sources), longest + 1, record)
        for row in sources:
            entry, behind = entries[row], before[entries[row]]
            for table, new, old in (
                (self._keys, record.keys, None if ready.context is None else ready.context.keys),
                (self._values, record.values, None if ready.context is None else ready.context.values),
            ):
                for site, tensor in enumerate(table):
                    if old is not None:
                        tensor[slot, :, :behind] = old[site][entry, :, :behind]
                    tensor[slot, :, behind : behind + own[row]] = new[site][row, :, first[row] : first[row] + own[row]]
            self._lengths.append(behind + own[row])
            self._pinned.append(pinned[entry])
            slot += 1
        return outputs.logits[sources, -1]

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        device, rows, longest = self._backbone.device, len(self), max(self._lengths)
        self._make_room(rows, longest + 1)
        context = Context(
            tuple(k[:rows, :, :longest] for k in self._keys),
            tuple(v[:rows, :, :longest] for v in self._values),
            torch.tensor(self._lengths, device=device),
            torch.tensor(self._pinned, device=device),
        )
        record = Record()
        ids = torch.tensor(tokens, device=device)[:, None]
        mask = torch.ones(rows, 1, dtype=torch.bool, device=device)
        logits = self._backbone.outputs(self._backbone.embed(ids), mask, context, record=record).logits
        assert logits is not None, "a decoder speaks"
        each = torch.arange(rows, device=device)
        for table, new in ((self._keys, record.keys), (self._values, record.values)):
            for site, tensor in enumerate(table):
                tensor[each, :, context.lengths] = new[site][:, :, 0]
        self._lengths = [length + 1 for length in self._lengths]
        return logits[:, -1]

    def leave(self, row: int) -> None:
        last = len(self) - 1
        if row != last:
            length = self._lengths[last]
            for tensor in (*self._keys, *self._values):
                tensor[row, :, :length] = tensor[last, :, :length]
            self._lengths[row], self._pinned[row] = length, self._pinned[last]
        self._lengths.pop()
        self._pinned.pop()
        if not self._lengths:
            # One long row must not hold its room for ever.
            self._keys, self._values = [], []

    def _make_room(self, rows: int, length: int, record: Record | None = None) -> None:
        """Let the table have at least so many rows of at least such a length; `record` tells what one is made of."""
        if not self._keys:
            assert record is not None, "rows begin before they step"
            like = [record.keys[s] for s in sorted(record.keys)], [record.values[s] for s in sorted(record.values)]
            self._keys, self._values = ([t.new_zeros(0, t.shape[1], 0, t.shape[3]) for t in side] for side in like)
        there, room = self._keys[0].shape[0], self._keys[0].shape[2]
        if rows <= there and length <= room:
            return
        # Twice the rows, so that rows that come one by one are not copied each time.
        there = there if rows <= there else max(rows, 2 * there)
        room = room if length <= room else -(-length // _PORTION) * _PORTION
        for table in (self._keys, self._values):
            for site, tensor in enumerate(table):
                table[site] = tensor.new_zeros(there, tensor.shape[1], room, tensor.shape[3])
                table[site][: tensor.shape[0], :, : tensor.shape[2]] = tensor


@dataclass
class _Row:
    """
    Attributes:
        example, filling: the row and its prompt.
        encoded, place: what an encoder made of the rows it came with, and where among them it is.
        written: its answer so far.
    """

    example: Example
    filling: Filling
    encoded: Encoded | None
    place: int
    written: Tokens = ()


class RepeatedRows(Live):
    """Rows of a model that cannot read a context, or whose decoder stands apart: every step runs them from their first
    token on (an encoder once). Slower, and right for every model."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._rows: list[_Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    @torch.no_grad()
    def begin(
        self, examples: Sequence[Example], fillings: Sequence[Filling], which: Sequence[int], copies: Sequence[int]
    ) -> Tensor:
        encoded = None
        if self._forward.backbone.kind == "encoder-decoder":
            encoded = self._forward.encode(examples, fillings, which)
        new = [
            _Row(example, fillings[which[place]], encoded, place)
            for place, (example, times) in enumerate(zip(examples, copies, strict=True))
            for _ in range(times)
        ]
        self._rows += new
        return self._next(new)

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        for row, token in zip(self._rows, tokens, strict=True):
            row.written = (*row.written, token)
        return self._next(self._rows)

    def leave(self, row: int) -> None:
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def _next(self, rows: Sequence[_Row]) -> Tensor:
        """Logits behind what is written: those of one more token, whatever it is."""
        parts: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            parts.setdefault(id(row.encoded), []).append(number)
        found: dict[int, Tensor] = {}
        for numbers in parts.values():
            own = [rows[number] for number in numbers]
            targets = [(*row.written, 0) for row in own]
            if own[0].encoded is not None:
                logits, _ = self._forward.decode(own[0].encoded, [row.place for row in own], targets)
            else:
                examples = [replace(row.example, target=t) for row, t in zip(own, targets, strict=True)]
                logits, _ = self._forward(examples, [row.filling for row in own], range(len(own)))
            found |= zip(numbers, logits[:, -1], strict=True)
        return torch.stack([found[number] for number in range(len(rows))])
