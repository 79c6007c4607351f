"""Sequences of tokens become one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, padded to one length, and where in them the model's output is read. Never changed once made.

    Attributes:
        ids: `[B, T]` int64; a token id, or `-1 - v` for virtual token v; 0 where padded.
        mask: `[B, T]` bool; True for real and virtual tokens.
        at: `[B, S]` int64; the columns whose output is read, of `decoder_ids` where there are such, else of `ids`. A
            row of fewer is padded in front (with column 0), so that all answers end in the last.
        targets: `[B, S]` int64; what is to be predicted there, `IGNORED` where nothing is.
        decoder_ids: `[B, U]` int64; what the decoder of an encoder-decoder reads, padded behind; None for the others.
        segments: `[B, T]` int64; 0 up to where the second segment of a row begins, and 1 from there on; None where no
            row has a second one.
    """

    ids: Tensor
    mask: Tensor
    at: Tensor
    targets: Tensor
    decoder_ids: Tensor | None = None
    segments: Tensor | None = None

    @classmethod
    def of(
        cls,
        sequences: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]] | None = None,
        reads: Sequence[Sequence[int] | None] | None = None,
        seconds: Sequence[int | None] = (),
        *,
        decoder_start: Sequence[int] = (),
        in_front: bool = True,
    ) -> Self:
        """Pad sequences.

        Args:
            sequences: B rows, none of them empty.
            targets: what is to be predicted for each row. S is 1 where nothing is.
            reads: for each row the positions whose output is read, one for each of its targets if it has some. None
                where its answer is written: all of that but the last token is then appended to the row, so that each
                of its tokens is predicted from what stands before it.
            seconds: for each row where its second segment begins, None where it has none; empty where no row has one.
            decoder_start: what a decoder of its own reads before an answer that is written; the answer is appended to
                that and not to the row.
            in_front: whether rows are padded in front, or behind.
        """
        answers = targets if targets is not None else [()] * len(sequences)
        places = reads if reads is not None else [None] * len(sequences)
        rows, written, at = [], [], []
        for row, answer, place in zip(sequences, answers, places, strict=True):
            opened = [*(decoder_start or row), *(answer[:-1] if place is None else ())]
            rows.append(list(row) if decoder_start else opened)
            written.append(opened)
            at.append(range(len(opened) - max(1, len(answer)), len(opened)) if place is None else place)
        width, last = max(map(len, rows)), max(1, *map(len, at), *map(len, answers))
        if not decoder_start and in_front:
            at = [[width - len(row) + column for column in place] for row, place in zip(rows, at, strict=True)]
        return cls(
            torch.tensor([_padded(row, width, 0, in_front) for row in rows]),
            torch.tensor([_padded([1] * len(row), width, 0, in_front) for row in rows], dtype=torch.bool),
            torch.tensor([_padded(list(place), last, 0, True) for place in at]),
            torch.tensor([_padded(list(a), last, IGNORED, True) for a in answers]),
            torch.tensor([_padded(w, max(map(len, written)), 0, False) for w in written]) if decoder_start else None,
            torch.tensor([_padded(s, width, 0, in_front) for s in map(_segments, rows, seconds)])
            if any(second is not None for second in seconds)
            else None,
        )

    def to(self, device: torch.device) -> Batch:
        decoder_ids, segments = (None if t is None else t.to(device) for t in (self.decoder_ids, self.segments))
        return Batch(
            self.ids.to(device),
            self.mask.to(device),
            self.at.to(device),
            self.targets.to(device),
            decoder_ids,
            segments,
        )


def _segments(row: list[int], second: int | None) -> list[int]:
    return [int(second is not None and i >= second) for i in range(len(row))]


def _padded(row: list[int], width: int, filler: int, in_front: bool) -> list[int]:
    padding = [filler] * (width - len(row))
    return [*padding, *row] if in_front else [*row, *padding]
