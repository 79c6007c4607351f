"""From a request's coroutine to the service's thread and back: who goes away, or is out of time, waits no longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from softprompt.answer.sampling import Token
from softprompt.answer.written import Finish, Written
from softprompt.errors import DeadlineError

R = TypeVar("R")
Begin = Callable[[], Sequence[Future[Any]]]
"""Asks the service; whatever it cannot do it says at once."""


class GoneError(Exception):
    """Nobody waits for the answer any longer."""


@dataclass(frozen=True)
class Piece:
    """New text of an answer.

    Attributes:
        number: which of a row's answers.
        text: what is new of it.
        tokens: those it was made of, and those that made none.
        finish: why it ended, if it has.
    """

    number: int
    text: str
    tokens: tuple[Token, ...]
    finish: Finish | None


async def begun(begin: Callable[[], Sequence[Future[R]]]) -> Sequence[Future[R]]:
    """Ask the service, in a thread of its own: texts are made tokens there, and that takes a while."""
    return await asyncio.to_thread(begin)


async def answered(request: Request, futures: Sequence[Future[R]], timeout: float) -> list[R]:
    """What futures bring; if that is not wanted any longer, they are cancelled.

    Raises:
        DeadlineError: it took too long.
        GoneError: the client is not there any longer.
    """
    everything: asyncio.Future[list[R]] = asyncio.gather(*map(asyncio.wrap_future, futures))
    gone = asyncio.create_task(_gone(request))
    waited: set[asyncio.Future[Any]] = {everything, gone}
    try:
        done, _ = await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if everything in done:
            return everything.result()
        if gone in done:
            raise GoneError
        raise _late(timeout)
    finally:
        gone.cancel()
        everything.cancel()
        for future in futures:
            future.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _late(timeout: float) -> DeadlineError:
    return DeadlineError(
        f"it was not answered within {timeout:g} seconds", instead="Ask for less, or when fewer others do."
    )


class Stream:
    """The pieces of one row's answers, from the thread that writes them to the coroutine that sends them."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._told: dict[int, int] = {}

    def tell(self, number: int, text: str, written: Written) -> None:
        """Called by the thread that writes."""
        told = self._told.get(number, 0)
        self._told[number] = len(written.tokens)
        self._put(Piece(number, text, tuple(written.tokens[told:]), written.finish))

    async def pieces(self, future: Future[Any], timeout: float) -> AsyncIterator[Piece]:
        """All pieces, as they come; whoever stops asking for them cancels what is being written.

        Raises as `answered`, and what the service raises.
        """
        future.add_done_callback(lambda _: self._put(None))
        late = self._loop.time() + timeout
        try:
            while True:
                try:
                    piece = await asyncio.wait_for(self._pieces.get(), late - self._loop.time())
                except TimeoutError:
                    raise _late(timeout) from None
                if piece is None:
                    future.result()
                    return
                yield piece
        finally:
            future.cancel()

    def _put(self, piece: Piece | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)
        except RuntimeError:  # the server has closed meanwhile
            return
