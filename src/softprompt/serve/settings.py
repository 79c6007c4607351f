"""How a server is set up."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from softprompt.checks import check_whole
from softprompt.errors import SettingsError


@dataclass(frozen=True)
class ServeSettings:
    """
    Attributes:
        host, port: where it listens; on this machine alone unless told otherwise.
        keys: of which a request must bring one; none are asked for where there is none.
        rows: answers that are written at once, and rows that are answered in one pass.
        queue: rows that may wait; more are turned away with status 429.
        memory: bytes that prompts and what they are compiled to may take; None for no bound.
        max_body: bytes of a request's body.
        max_input: characters of all texts of one request together.
        max_new_tokens: the most tokens of one answer.
        timeout: seconds that a request may take.
        drain: seconds that what is running has to finish when the server is stopped.
        loading: whether prompts can be loaded and unloaded over HTTP.

    Raises:
        SettingsError: one of them is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = ()
    rows: int = 32
    queue: int = 256
    memory: int | None = None
    max_body: int = 1024 * 1024
    max_input: int = 200_000
    max_new_tokens: int = 1024
    timeout: float = 300.0
    drain: float = 30.0
    loading: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "queue", "max_body", "max_input", "max_new_tokens"):
            check_whole(name, getattr(self, name))
        for name in ("timeout", "drain"):
            if not getattr(self, name) > 0:
                raise SettingsError("it must be above 0", where=name, instead="Give seconds.")
        if not 0 <= self.port < 2**16:
            raise SettingsError(f"{self.port} is no port", where="port", instead="Give a number from 0 to 65535.")

    @property
    def local(self) -> bool:
        """Whether it can be reached from this machine alone."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; empty lines, and those that begin with #, are none.

    Raises:
        SettingsError: it cannot be read, or there is no key in it.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as cause:
        raise SettingsError(
            f"it cannot be read: {cause}", where=str(path), instead="Give a text file of keys."
        ) from cause
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise SettingsError("there is no key in it", where=str(path), instead="Write one key a line.")
    return keys
