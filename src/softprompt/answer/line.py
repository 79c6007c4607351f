"""Rows that wait for the model, in the order in which they were asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from softprompt.answer.answering import Asked
from softprompt.answer.sampling import Sampling
from softprompt.answer.written import Written
from softprompt.errors import QueueError
from softprompt.run.vote import By

Tell = Callable[[int, str, Written], None]
"""Told of new text: which of a row's answers it belongs to, the text, and that answer so far."""


@dataclass(eq=False)
class Waiting:
    """What one caller asked.

    Attributes:
        asked: the rows.
        by: how ensembles choose.
        sampling: how the answer is written; None where it is not.
        tell: of what is written, as it is written.
        future: of the answers, in order; whoever cancels it waits no longer.
        answers: those that are there, by the row's place.
    """

    asked: Sequence[Asked]
    by: By = "vote"
    sampling: Sampling | None = None
    tell: Tell | None = None
    future: Future[list[Any]] = field(default_factory=Future)
    answers: dict[int, Any] = field(default_factory=dict)

    @property
    def left(self) -> bool:
        """Whether nobody waits for it any longer."""
        return self.future.done()

    def answered(self, place: int, answer: object) -> None:
        """Take the answer to a row; the last makes the whole."""
        self.answers[place] = answer
        if len(self.answers) == len(self.asked) and self.future.set_running_or_notify_cancel():
            self.future.set_result([self.answers[i] for i in range(len(self.asked))])

    def failed(self, error: BaseException) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class Row:
    """One row of what was asked; `place` is its number there, from 0."""

    request: Waiting
    place: int

    @property
    def asked(self) -> Asked:
        return self.request.asked[self.place]

    @property
    def copies(self) -> int:
        """How many answers are written to it."""
        return 1 if self.request.sampling is None else self.request.sampling.n


class Line:
    """Rows that wait.

    Attributes:
        most: how many may.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._rows: deque[Row] = deque()

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, request: Waiting) -> None:
        """
        Raises:
            QueueError: it would be too many.
        """
        there, more = len(self._rows), len(request.asked)
        # A long request may come where nobody waits: it would else never be answered.
        if there and there + more > self.most:
            raise QueueError(
                f"{there} rows are waiting, and {more} more would be above {self.most}",
                instead="Try again in a moment.",
            )
        self._rows += [Row(request, place) for place in range(more)]

    def take(self, most: int, cost: Callable[[Row], int], *, one: bool = False) -> list[Row]:
        """The first ones, as many as cost no more than `most`; with `one`, the first whatever it costs.

        Rows that nobody waits for any longer are left out.
        """
        taken: list[Row] = []
        while self._rows:
            row = self._rows[0]
            if not row.request.left:
                most -= cost(row)
                if most < 0 and (taken or not one):
                    break
                taken.append(row)
            self._rows.popleft()
        return taken
