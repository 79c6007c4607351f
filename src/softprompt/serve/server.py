"""A server, from the model to the last answer before it stops."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Mapping

import uvicorn
from fastapi import FastAPI

from softprompt.answer.service import Service
from softprompt.backbone.backbone import Backbone
from softprompt.errors import WorkError
from softprompt.serve.app import create_app
from softprompt.serve.desk import Desk
from softprompt.serve.metrics import Metrics
from softprompt.serve.settings import ServeSettings

_LOG = logging.getLogger("softprompt.serve")


def desk_for(backbone: Backbone, prompts: Mapping[str, str], settings: ServeSettings) -> Desk:
    """What answers, with its prompts taken in.

    Args:
        prompts: folders by name.

    Raises as `Engine.add`.
    """
    metrics = Metrics()
    service = Service(backbone, rows=settings.rows, queue=settings.queue, memory=settings.memory, observer=metrics)
    try:
        desk = Desk(service, settings, metrics)
        for name, folder in prompts.items():
            desk.add(name, folder, replace=False)
    except BaseException:
        service.close(0)
        raise
    return desk


def run(desk: Desk) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); what is running is then finished first.

    Raises:
        WorkError: the address cannot be listened on.
    """
    listener = listen(desk.settings)
    host, port = listener.getsockname()[:2]
    facts = {"host": host, "port": port, "model": desk.name, "prompts": len(desk.service.library.folders)}
    facts |= {name: getattr(desk.settings, name) for name in ("rows", "queue", "timeout", "loading")}
    _LOG.info("listening", extra={"facts": facts})
    if not desk.settings.local and not desk.settings.keys:
        _LOG.warning("anyone who reaches this address can ask: there are no keys (--api-key-file)")
    # The server raises again, when it has stopped, the signal that stopped it: to stop so is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config(create_app(desk), desk.settings)).run(sockets=[listener])
    _LOG.info("stopped")


def config(app: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        # Longer than the service itself has: whoever waits for it is told how it ended.
        timeout_graceful_shutdown=int(settings.drain) + 5,
        h11_max_incomplete_event_size=64 * 1024,
    )


def listen(settings: ServeSettings) -> socket.socket:
    """Take the address.

    Raises:
        WorkError: it cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        # Whoever comes from now on waits for the server, and is not turned away.
        listener.listen(2048)
    except OSError as cause:
        raise WorkError(
            f"it cannot be listened on: {cause.strerror or cause}",
            where=f"{settings.host}:{settings.port}",
            instead="Give another --port or --host.",
        ) from cause
    return listener
