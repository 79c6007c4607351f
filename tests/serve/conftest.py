"""Servers, as tests ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from servers import Running, started
from softprompt.serve.settings import ServeSettings


@pytest.fixture(scope="session")
def served() -> Iterator[Running]:
    """One for all tests that only ask it."""
    yield from started(ServeSettings(port=0, rows=8))


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Starts one with settings of its own."""
    open_ones: list[Iterator[Running]] = []

    def start(**settings: object) -> Running:
        one = started(ServeSettings(port=0, **settings))
        open_ones.append(one)
        return next(one)

    yield start
    for one in open_ones:
        next(one, None)
