"""Where routes ask: which prompt is meant, what of it is asked, and what there is to tell afterwards."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from softprompt.answer.answers import Answer
from softprompt.answer.plain import Plain
from softprompt.answer.requests import VERBS, WITHOUT_WRITING, AskedRow, Ensemble, Entry, asking
from softprompt.answer.sampling import Sampling
from softprompt.answer.service import Service
from softprompt.answer.written import Written
from softprompt.errors import LengthError, RequestError, SettingsError
from softprompt.run.vote import By
from softprompt.serve.calls import Piece, Stream, answered, begun
from softprompt.serve.metrics import Metrics
from softprompt.serve.settings import ServeSettings

R = TypeVar("R")

_LOG = logging.getLogger("softprompt.serve")


@dataclass
class Call:
    """One request, for the log and the metrics.

    Attributes:
        id: what its answer is called.
        route: empty where there is none of that path.
        model: the prompt that is asked; empty until it is known to be there.
        read, written: tokens.
        began: when it came, for counting seconds; created: the same, in seconds since 1970.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    route: str = ""
    model: str = ""
    read: int = 0
    written: int = 0
    began: float = field(default_factory=time.perf_counter)
    created: int = field(default_factory=lambda: int(time.time()))


class Desk:
    """What all routes share.

    Attributes:
        service: answers.
        settings: of the server.
        metrics: what is counted.
        plain: the model itself; None where it cannot write.
    """

    def __init__(self, service: Service, settings: ServeSettings, metrics: Metrics) -> None:
        self.service, self.settings, self.metrics = service, settings, metrics
        backbone = service.backbone
        self.plain = Plain(backbone) if backbone.speaks and backbone.kind != "encoder" else None
        self.started = int(time.time())

    @property
    def name(self) -> str:
        """Of the model itself."""
        return self.service.backbone.name

    def call(self, request: Request, prefix: str) -> Call:
        """What is counted of a request; `prefix` is what its answer's name begins with."""
        call: Call = request.state.call
        call.id, call.route = f"{prefix}-{call.id}", route_of(request.scope)
        return call

    def add(self, name: str, folder: str, *, replace: bool) -> None:
        """Take a prompt in; raises as `Service.add`, and where it is called like the model."""
        if name == self.name:
            raise SettingsError(f"the model itself is called {name!r}", where="name", instead="Give another name.")
        self.service.add(name, folder, replace=replace)

    def entry(self, call: Call, name: str) -> Entry | Ensemble | None:
        """The prompt of a name; None for the model itself.

        Raises:
            UnknownPromptError: there is none.
        """
        entry = None if name == self.name and self.plain is not None else self.service.entry(name)
        call.model = name
        return entry

    def chosen(self, call: Call, name: str) -> Entry | Ensemble:
        """A prompt that chooses.

        Raises:
            UnknownPromptError: there is none of that name.
            RequestError: it is the model itself, or a prompt that writes.
        """
        entry = self.entry(call, name)
        if entry is None:
            raise RequestError("the model itself has no labels", where=name, instead="Name a prompt.")
        return entry

    def check_length(self, *texts: str) -> None:
        """
        Raises:
            LengthError: they are too long together.
        """
        total = sum(map(len, texts))
        if total > self.settings.max_input:
            raise LengthError(
                f"the texts of the request have {total} characters, {self.settings.max_input} are allowed",
                instead="Shorten them, or send fewer at once.",
            )

    def check_tokens(self, tokens: int, where: str) -> None:
        """
        Raises:
            SettingsError: so many may not be written.
        """
        if tokens > self.settings.max_new_tokens:
            raise SettingsError(
                f"{tokens} is above {self.settings.max_new_tokens}, the most of this server",
                where=where,
                instead="Ask for fewer.",
            )

    async def read(self, make: Callable[[], R]) -> R:
        """Rows, read beside what else the server does."""
        return await asyncio.to_thread(self.service.read, make)

    async def choose(
        self, request: Request, call: Call, asked: Sequence[tuple[str, Mapping[str, Any]]], by: By | None = None
    ) -> list[Answer]:
        """Answers to requests that are not written."""
        rows = await self.read(lambda: self.service.library.read(asked, asking(*WITHOUT_WRITING)))
        call.read = sum(len(one.example.tokens) for members in rows for one in members)
        (future,) = await begun(lambda: [self.service.answer_rows(rows, by)])
        (answers,) = await answered(request, [future], self.settings.timeout)
        return answers

    async def write(
        self, request: Request, call: Call, rows: Sequence[AskedRow], sampling: Sampling
    ) -> list[list[Written]]:
        """For each row its answers."""
        call.read = sum(len(row.example.tokens) for row in rows)

        def begin() -> Sequence[Future[Any]]:
            futures: list[Future[Any]] = []
            try:
                for row in rows:
                    futures.append(self.service.write_row(row, sampling))
            except Exception:
                for future in futures:
                    future.cancel()
                raise
            return futures

        found = await answered(request, await begun(begin), self.settings.timeout)
        answers = [own for (own,) in found]
        call.written = sum(len(a.tokens) for own in answers for a in own)
        return answers

    async def stream(self, call: Call, row: AskedRow, sampling: Sampling) -> AsyncIterator[Piece]:
        """The pieces of a row's answers; asked before the first is waited for."""
        stream = Stream()
        call.read += len(row.example.tokens)
        (future,) = await begun(lambda: [self.service.write_row(row, sampling, stream.tell)])
        return self._counted(call, stream.pieces(future, self.settings.timeout))

    async def _counted(self, call: Call, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
        async for piece in pieces:
            if not call.written:
                self.metrics.first_token.labels(call.model, call.route).observe(time.perf_counter() - call.began)
            call.written += len(piece.tokens)
            yield piece

    def finished(self, call: Call, status: int) -> None:
        """Count a request and log it; what was said in it is not logged."""
        seconds = time.perf_counter() - call.began
        m = self.metrics
        m.requests.labels(call.model, call.route, str(status)).inc()
        if call.model and status < 400:
            m.seconds.labels(call.model, call.route).observe(seconds)
            m.read.labels(call.model).inc(call.read)
            m.written.labels(call.model).inc(call.written)
        _LOG.info(
            "request",
            extra={
                "facts": {
                    "id": call.id,
                    "route": call.route,
                    "model": call.model,
                    "status": status,
                    "seconds": round(seconds, 4),
                    "prompt_tokens": call.read,
                    "completion_tokens": call.written,
                }
            },
        )


def route_of(scope: Mapping[str, Any]) -> str:
    """The path of the route that answers, as it is declared; empty where there is none."""
    return getattr(scope.get("route"), "path", "")


def chooses(entry: Entry | Ensemble | None) -> bool:
    """Whether a prompt answers with labels, so that one of them is its answer in words, too."""
    return entry is not None and VERBS[entry.prompt.task.kind] == "classify"


def only_field(entry: Entry | Ensemble, instead: str) -> str:
    """The field that a text alone fills.

    Raises:
        RequestError: the template has none, or several.
    """
    fields = entry.prompt.task.template.fields
    if len(fields) != 1:
        raise RequestError(
            f"its template has {'no field' if not fields else 'the fields ' + ', '.join(fields)}",
            where="model",
            instead=instead,
        )
    return fields[0]
