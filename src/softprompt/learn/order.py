"""Which rows stand in which step: the seed and the step's number decide alone, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Shuffled(Generic[T]):
    """Epoch after epoch, each in an order of its own; a step may take the end of one and the beginning of the next.

    Attributes:
        rows: what is put in order.
        size: rows of a step: as many as asked for, or all where there are fewer.
    """

    def __init__(self, rows: Sequence[T], batch_size: int, seed: int) -> None:
        self.rows, self.size, self._seed = rows, min(batch_size, len(rows)), seed
        self._orders: dict[int, list[int]] = {}

    def __call__(self, step: int) -> list[T]:
        """The rows of a step, which are counted from 0."""
        count = len(self.rows)
        return [self.rows[self._order(i // count)[i % count]] for i in range(step * self.size, (step + 1) * self.size)]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            # The one before may still be needed, older ones are not.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            generator = torch.Generator().manual_seed((self._seed << 24) + epoch)
            self._orders[epoch] = torch.randperm(len(self.rows), generator=generator).tolist()
        return self._orders[epoch]
