"""Requests of many callers at once over one model: whatever there is to run is run together.

One thread has the model. Between two of its passes requests come and go: an answer that is being written gets a token a
pass, whoever else is written beside it (continuous batching); what is answered by one pass is answered in between.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import torch

from softprompt.answer.answering import Answering, Asked
from softprompt.answer.answers import Answer, Request
from softprompt.answer.library import Library, Source
from softprompt.answer.line import Line, Row, Tell, Waiting
from softprompt.answer.options import generation_config
from softprompt.answer.requests import WITHOUT_WRITING, AskedRow, Ensemble, Entry, asking, chosen_by, to_write
from softprompt.answer.sampling import Sampling
from softprompt.answer.writers import Writers
from softprompt.answer.written import Written
from softprompt.backbone.backbone import Backbone
from softprompt.checks import check_whole
from softprompt.errors import BusyError, SettingsError, SoftpromptError, WorkError
from softprompt.run.forward import Forward
from softprompt.run.vote import By

R = TypeVar("R")

_READ_AT_ONCE = 2048
"""Tokens of rows that are begun in one pass: answers that are being written wait for it."""


class Observer(Protocol):
    """Told of what a service does, by the thread that does it."""

    def passed(self, kind: str, rows: int, seconds: float) -> None:
        """The model ran over so many rows: "answer", "begin" or "step"."""


class _Nobody:
    def passed(self, kind: str, rows: int, seconds: float) -> None:
        pass


class Service:
    """Answers many callers. Every method may be called from any thread.

    Attributes:
        backbone: the frozen model.
        library: the prompts; take them in and out by the methods of the service.
        rows: answers that are written at once, and rows that are answered in one pass.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        rows: int = 32,
        queue: int = 1024,
        memory: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        """
        Args:
            queue: rows that may wait.
            memory: as in `Engine`.
            observer: is told of each pass.

        Raises:
            SettingsError: a number below 1.
        """
        check_whole("rows", rows)
        check_whole("queue", queue)
        self.backbone, self.rows = backbone, rows
        self.library = Library(backbone, memory)
        self._forward, self._config = Forward(backbone), generation_config(backbone, 1, {})
        self._answering = Answering(self._forward, rows)
        self._writers = Writers(self._forward, rows, frozenset(self._config.eos_token_id))
        self._observer = observer or _Nobody()
        # A tokenizer is set up anew for each text; and the library changes whenever it is asked.
        self._reading = threading.Lock()
        self._changed = threading.Condition()
        self._to_answer, self._to_write = Line(queue), Line(queue)
        self._errands: deque[Callable[[], object]] = deque()
        self._closing = self._giving_up = False
        self._thread = threading.Thread(target=self._work, name="softprompt", daemon=True)
        self._thread.start()

    def add(self, name: str, prompt: Source, *, replace: bool = False) -> None:
        """Take a prompt in, whatever is being answered meanwhile; as `Engine.add`."""
        with self._reading:
            self.library.add(name, prompt, replace=replace)

    def remove(self, name: str) -> None:
        """Forget a prompt; what was asked of it before is still answered. As `Engine.remove`."""
        with self._reading:
            self.library.remove(name)
        with self._changed:
            self._errands.append(self._forward.reader.forget)
            self._changed.notify()

    def read(self, make: Callable[[], R]) -> R:
        """What `make` makes, one caller at a time: a tokenizer is set up anew for each text."""
        with self._reading:
            return make()

    def entry(self, name: str) -> Entry | Ensemble:
        """A prompt, as it is asked.

        Raises:
            UnknownPromptError: there is none of that name.
        """
        with self._reading:
            return self.library.entry(name)

    def answer(self, requests: Sequence[Request], *, by: By | None = None) -> Future[list[Answer]]:
        """Answer requests by label, span or vector, as the tasks of their prompts are.

        Returns:
            The answers to come, in order. Whoever cancels waits no longer, and the place is free.

        Raises:
            QueueError: too many are waiting.
            BusyError: the service is closing.
            RequestError: as `Engine.answer`, or a task is one that is written; nothing is answered then.
        """
        return self.answer_rows(self.read(lambda: self.library.read(requests, asking(*WITHOUT_WRITING))), by)

    def answer_rows(self, asked: Sequence[Asked], by: By | None = None) -> Future[list[Answer]]:
        """The same of rows that were read already."""
        return self._ask(self._to_answer, Waiting(asked, chosen_by(by, asked)))

    def write(self, request: Request, sampling: Sampling, tell: Tell | None = None) -> Future[list[list[Written]]]:
        """Write to a request.

        Args:
            sampling: how, and how many answers.
            tell: told of the text as it is written, by the thread that writes; it must not wait.

        Returns:
            A list of one: the answers to come. Raises and is cancelled as `answer`.
        """
        with self._reading:
            (asked,) = self.library.read_alone(
                [request], lambda entry, row, where: to_write(entry, row, where, sampling.max_new_tokens)
            )
        return self.write_row(asked, sampling, tell)

    def write_row(self, asked: AskedRow, sampling: Sampling, tell: Tell | None = None) -> Future[list[list[Written]]]:
        """The same to a row that was read already; see `plain_row`."""
        if sampling.n > self.rows:
            raise SettingsError(
                f"{sampling.n} answers are more than the {self.rows} that are written at once",
                where="n",
                instead="Ask for fewer.",
            )
        return self._ask(self._to_write, Waiting([(asked,)], sampling=sampling, tell=tell))

    @property
    def waiting(self) -> int:
        """Rows that wait."""
        return len(self._to_answer) + len(self._to_write)

    @property
    def writing(self) -> int:
        """Answers that are being written."""
        return len(self._writers)

    def close(self, timeout: float | None = None) -> bool:
        """Take nothing more in, and finish what was asked.

        Args:
            timeout: seconds after which what is not finished is given up; None for never.

        Returns:
            Whether all was finished.
        """
        self._tell_thread("_closing")
        self._thread.join(timeout)
        finished = not self._thread.is_alive()
        self._tell_thread("_giving_up")
        self._thread.join()
        return finished

    def _tell_thread(self, what: str) -> None:
        with self._changed:
            setattr(self, what, True)
            self._changed.notify()

    def _ask(self, line: Line, request: Waiting) -> Future[list[Any]]:
        with self._changed:
            if self._closing:
                raise BusyError("the service is closing", instead="Ask another one.")
            line.join(request)
            self._changed.notify()
        return request.future

    def _work(self) -> None:
        """What the thread does."""
        with torch.inference_mode():
            while self._wait():
                while self._errands:
                    self._errands.popleft()()
                self._writers.drop_left()
                self._answer_some()
                self._begin_some()
                self._step()
                with self._reading:
                    self.library.trim()

    def _wait(self) -> bool:
        """Until there is something to do; False when there will be nothing more."""
        with self._changed:
            while not self._giving_up:
                if self._errands or self.waiting or self.writing:
                    return True
                if self._closing:
                    return False
                self._changed.wait()
        error = BusyError("the service was closed before this was answered", instead="Ask another one.")
        self._writers.drop_all(error)
        for row in self._take(self._to_answer) + self._take(self._to_write):
            row.request.failed(error)
        return False

    def _take(self, line: Line) -> list[Row]:
        return line.take(len(line), lambda row: 1)

    def _answer_some(self) -> None:
        with self._changed:
            rows = self._to_answer.take(self.rows, lambda row: len(row.asked), one=True)
        for by in dict.fromkeys(row.request.by for row in rows):
            self._run("answer", [row for row in rows if row.request.by == by], self._answer)

    def _answer(self, rows: Sequence[Row]) -> None:
        answers = self._answering.answer([row.asked for row in rows], rows[0].request.by, self._config)
        for row, answer in zip(rows, answers, strict=True):
            row.request.answered(row.place, answer)

    def _begin_some(self) -> None:
        with self._changed:
            rows = self._to_write.take(self._writers.places, lambda row: row.copies)
        while rows:
            size, tokens = 0, 0
            while size < len(rows) and (not size or tokens + len(rows[size].asked[0].example.tokens) <= _READ_AT_ONCE):
                tokens += len(rows[size].asked[0].example.tokens)
                size += 1
            self._run("begin", rows[:size], self._writers.begin)
            rows = rows[size:]

    def _step(self) -> None:
        began, rows = time.perf_counter(), len(self._writers)
        if not rows:
            return
        try:
            self._writers.step()
        except Exception as error:
            self._writers.drop_all(_as_ours(error))
        self._observer.passed("step", rows, time.perf_counter() - began)

    def _run(self, kind: str, rows: Sequence[Row], work: Callable[[Sequence[Row]], None]) -> None:
        """Have work done for rows together; where that fails, for each alone, so that one costs no other its answer."""
        if not rows:
            return
        began = time.perf_counter()
        try:
            work(rows)
        except Exception as error:
            if len(rows) == 1:
                rows[0].request.failed(_as_ours(error))
            else:
                for row in rows:
                    self._run(kind, [row], work)
                return
        self._observer.passed(kind, len(rows), time.perf_counter() - began)


def _as_ours(error: Exception) -> Exception:
    return error if isinstance(error, SoftpromptError) else WorkError(f"{type(error).__name__}: {error}")
