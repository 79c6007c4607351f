"""Which rows stand in which step: the seed and the step's number decide alone, so that a run can be resumed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

# As many steps' rows are sorted by length at once: more would leave less to chance, fewer more padding.
TOGETHER = 50


class Shuffled(Generic[T]):
    """Epoch after epoch, each in an order of its own; a step may take the end of one and the beginning of the next.

    Attributes:
        rows: what is put in order.
        size: rows of a step: as many as asked for, or all where there are fewer.

    Args:
        length: of a row; where it is given, rows of like length stand together, drawn anew in every epoch: of each
            `TOGETHER` steps' rows the longest are a step's, then the next, and these steps are shuffled.
    """

    def __init__(self, rows: Sequence[T], batch_size: int, seed: int, length: Callable[[T], int] | None = None) -> None:
        self.rows, self.size, self._seed, self._length = rows, min(batch_size, len(rows)), seed, length
        self._orders: dict[int, list[int]] = {}

    def __call__(self, step: int) -> list[T]:
        """The rows of a step, which are counted from 0."""
        return self.take(step * self.size, self.size)

    def take(self, first: int, count: int) -> list[T]:
        """So many rows from one on, counted through all epochs."""
        rows = len(self.rows)
        return [self.rows[self._order(i // rows)[i % rows]] for i in range(first, first + count)]

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            # The one before may still be needed, older ones are not.
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            generator = torch.Generator().manual_seed((self._seed << 24) + epoch)
            order = torch.randperm(len(self.rows), generator=generator).tolist()
            if self._length is not None:
                # The first rows fill up the last step of the epoch before.
                begun = -epoch * len(self.rows) % self.size
                order = order[:begun] + self._together(order[begun:], self._length, generator)
            self._orders[epoch] = order
        return self._orders[epoch]

    def _together(self, order: Sequence[int], length: Callable[[T], int], generator: torch.Generator) -> list[int]:
        """An order in which rows of like length stand in one step; what is too few for a step comes last."""
        many, whole = TOGETHER * self.size, len(order) // self.size * self.size
        steps: list[list[int]] = []
        for start in range(0, whole, many):
            drawn = sorted(order[start : min(start + many, whole)], key=lambda i: length(self.rows[i]), reverse=True)
            steps += [drawn[i : i + self.size] for i in range(0, len(drawn), self.size)]
        shuffled = torch.randperm(len(steps), generator=generator).tolist()
        return [i for number in shuffled for i in steps[number]] + list(order[whole:])


class Mixed(Generic[T]):
    """Rows of several tasks in each step (Wang et al. 2023, section 3.2).

    A step has rows of K' tasks, K' drawn from 2 to K and the tasks drawn among all. Its rows are divided among them by
    their mixing rates: in proportion to how many rows each has, those of a large one counted up to a limit (Raffel et
    al. 2020, section 3.5.2); each has at least one. A task goes through its rows epoch after epoch, at its own pace.

    Args:
        tasks: the rows of each; two tasks or more.
        batch_size: rows of a step, at least as many as there are tasks.
        seed: of everything that is drawn.
        limit: up to how many rows of a task count.
    """

    def __init__(self, tasks: Sequence[Sequence[T]], batch_size: int, seed: int, limit: int) -> None:
        self.rates = [min(len(rows), limit) for rows in tasks]
        self.size, self._seed = batch_size, seed
        # Orders of their own: tasks of one size would else go through their rows in the same.
        seeds = [random.Random(f"{seed} {k}").getrandbits(32) for k in range(len(tasks))]
        self._orders = [Shuffled(rows, 1, own) for rows, own in zip(tasks, seeds, strict=True)]
        self._taken = [[0] * len(tasks)]
        """For each step so far, and the next, how many rows of each task stand before it."""

    def __call__(self, step: int) -> list[T]:
        """The rows of a step, which are counted from 0."""
        while len(self._taken) <= step:
            shares = self.shares(len(self._taken) - 1)
            self._taken.append([taken + shares.get(k, 0) for k, taken in enumerate(self._taken[-1])])
        before = self._taken[step]
        return [row for k, share in self.shares(step).items() for row in self._orders[k].take(before[k], share)]

    def shares(self, step: int) -> dict[int, int]:
        """The numbers of a step's tasks, and how many of its rows each has."""
        generator = torch.Generator().manual_seed((self._seed << 24) + step)
        count = 2 + int(torch.randint(len(self.rates) - 1, (), generator=generator))
        chosen = sorted(torch.randperm(len(self.rates), generator=generator)[:count].tolist())
        whole = sum(self.rates[k] for k in chosen)
        shares = dict.fromkeys(chosen, 1)
        for _ in range(self.size - count):
            # To the one that has least of what its rate asks for.
            shares[max(chosen, key=lambda k: self.size * self.rates[k] / whole - shares[k])] += 1
        return shares
