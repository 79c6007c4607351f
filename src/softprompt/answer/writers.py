"""Answers that are being written side by side, a token a pass; each comes and goes when it will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from softprompt.answer.answering import fillings_of
from softprompt.answer.line import Row
from softprompt.answer.sampling import Sampler
from softprompt.answer.written import Written
from softprompt.run.forward import Forward
from softprompt.run.live import live


@dataclass(eq=False)
class _Writer:
    """
    Attributes:
        row: what it answers.
        number: which of the row's answers this is, from 0.
        sampler: chooses its tokens.
        answers: all answers to the row.
    """

    row: Row
    number: int
    sampler: Sampler
    answers: list[Written]

    @property
    def written(self) -> Written:
        return self.answers[self.number]

    def write(self, logits: Tensor) -> int:
        """Choose a token and tell what it adds."""
        token = self.sampler(logits)
        new, tell = self.written.add(token), self.row.request.tell
        if tell is not None and (new or self.written.finish):
            tell(self.number, new, self.written)
        if all(answer.finish for answer in self.answers):
            self.row.request.answered(self.row.place, self.answers)
        return token.id


class Writers:
    """The answers that are being written.

    Attributes:
        most: how many may be.
    """

    def __init__(self, forward: Forward, most: int, ends: frozenset[int]) -> None:
        """
        Args:
            ends: end-of-text tokens.
        """
        self._forward, self.most, self._ends = forward, most, ends
        self._live = live(forward)
        self._writers: list[_Writer] = []
        self._next: list[int] = []

    def __len__(self) -> int:
        return len(self._writers)

    @property
    def places(self) -> int:
        """How many more there may be."""
        return self.most - len(self._writers)

    def begin(self, rows: Sequence[Row]) -> None:
        """Read rows, in one pass, and write the first token of each answer."""
        entries = [row.asked[0].entry for row in rows]
        fillings, which = fillings_of(entries)
        examples, copies = [row.asked[0].example for row in rows], [row.copies for row in rows]
        logits = self._live.begin(examples, fillings, which, copies)
        new = [writer for row in rows for writer in self._writers_of(row)]
        self._writers += new
        self._write(new, logits)

    def step(self) -> None:
        """Write a token of every answer."""
        if self._writers:
            self._write(self._writers, self._live.step(self._next))

    def drop_left(self) -> None:
        """Stop writing what nobody waits for any longer."""
        self._leave([writer.row.request.left for writer in self._writers])

    def drop_all(self, error: BaseException) -> None:
        """Give all of them up."""
        for writer in self._writers:
            writer.row.request.failed(error)
        self._live, self._writers, self._next = live(self._forward), [], []

    def _writers_of(self, row: Row) -> list[_Writer]:
        sampling, entry = row.request.sampling, row.asked[0].entry
        assert sampling is not None, "it is written"
        answers = [Written(entry.decode, sampling.stop, self._ends, sampling.max_new_tokens) for _ in range(sampling.n)]
        return [_Writer(row, number, Sampler(sampling, number), answers) for number in range(sampling.n)]

    def _write(self, writers: Sequence[_Writer], logits: Tensor) -> None:
        """Write a token of some answers, the last that there are; who has ended leaves."""
        kept = self._next[: len(self._writers) - len(writers)]
        self._next = kept + [writer.write(own) for writer, own in zip(writers, logits, strict=True)]
        self._leave([writer.written.finish is not None for writer in self._writers])

    def _leave(self, leaving: Sequence[bool]) -> None:
        # From the last on: who takes a place then stays.
        for number in reversed(range(len(self._writers))):
            if leaving[number]:
                self._live.leave(number)
                self._writers[number], self._next[number] = self._writers[-1], self._next[-1]
                self._writers.pop()
                self._next.pop()
