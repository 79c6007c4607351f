"""Sequences of tokens become one padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, padded in front so that all answers end in the same column. Never changed once made.

    Attributes:
        ids: `[B, T]` int64; a token id, or `-1 - v` for virtual token v; 0 where padded.
        mask: `[B, T]` bool; True for real and virtual tokens.
        targets: `[B, S]` int64; what the last S columns are to predict, `IGNORED` where nothing is.
    """

    ids: Tensor
    mask: Tensor
    targets: Tensor

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], targets: Sequence[Sequence[int]] | None = None) -> Batch:
        """Pad sequences in front.

        Args:
            sequences: B rows, none of them empty.
            targets: the answer to each row. All of it but the last token is appended to the row, so that each answer
                token is predicted from what stands before it. S is 1 where no answer is given.
        """
        answers = targets if targets is not None else [()] * len(sequences)
        rows = [[*row, *answer[:-1]] for row, answer in zip(sequences, answers, strict=True)]
        width, last = max(map(len, rows)), max(1, max(map(len, answers)))
        return cls(
            torch.tensor([[0] * (width - len(row)) + row for row in rows]),
            torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows]),
            torch.tensor([[IGNORED] * (last - len(a)) + list(a) for a in answers]),
        )

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.mask.to(device), self.targets.to(device))
