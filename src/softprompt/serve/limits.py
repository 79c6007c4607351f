"""What a request must be before it is looked at: allowed, and small enough. Plain ASGI, so that answers can stream."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.serve.errors import refusal

OPEN = ("/health",)
"""Routes that ask for no key."""


class Keys:
    """Lets requests in that bring a key."""

    def __init__(self, app: ASGIApp, keys: Collection[str], guarded: tuple[str, ...] = ("/v1", "/metrics")) -> None:
        """
        Args:
            guarded: what the paths begin with that ask for one.
        """
        self.app, self._guarded = app, guarded
        # Digests have one length, so that comparing takes the same time whatever was sent.
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._guarded):
            kind, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not self.knows(key.strip()):
                message = "a key is asked for; send it as 'Authorization: Bearer KEY'"
                await refusal(401, message, code="invalid_api_key")(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def knows(self, key: bytes) -> bool:
        """Whether it is one of the keys; all are compared, whichever it is."""
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


class BodyLimit:
    """Turns away bodies that are too large, before and while they are read."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        # One that says nothing, or less than it holds, is found out while it is read.
        if length.isdigit() and int(length) > self.most:
            await self._refuse(scope, receive, send)
            return
        read, begun = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLarge:
            if not begun:
                await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        await refusal(413, f"the body is above {self.most} bytes; send less at once")(scope, receive, send)


class _TooLarge(BaseException):
    """No `Exception`: whoever reads a body takes such for a body that cannot be read."""
