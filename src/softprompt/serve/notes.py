"""Each request is counted and logged when its answer is over, whatever became of it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.serve.desk import Call, Desk, route_of

GONE = 499
"""The status that is noted where a client has gone before its answer was there; nobody is sent it."""


class Noted:
    """Plain ASGI, the outermost."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self.app, self._desk = app, desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call, status = Call(), GONE
        scope.setdefault("state", {})["call"] = call

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", call.id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            call.route = call.route or route_of(scope)
            self._desk.finished(call, status)
