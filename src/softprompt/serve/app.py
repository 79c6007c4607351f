"""The server's routes, put together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import anyio.to_thread
from fastapi import FastAPI, Request, Response

from softprompt import __version__
from softprompt.serve import chat, classify, completions, embeddings, models, operations
from softprompt.serve.calls import GoneError
from softprompt.serve.desk import Desk
from softprompt.serve.errors import add_handlers
from softprompt.serve.limits import BodyLimit, Keys
from softprompt.serve.notes import GONE, Noted

_ABOUT = """One frozen model answers for every task: the name of a prompt stands where clients name a model.

The routes under `/v1` are OpenAI's, so its clients work as they are; `/v1/classify` chooses among labels."""


def create_app(desk: Desk) -> FastAPI:
    """The application; it closes the desk's service when it is shut down."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(desk.service.close, desk.settings.drain)

    app = FastAPI(title="softprompt", version=__version__, description=_ABOUT, lifespan=lifespan)
    add_handlers(app)

    @app.exception_handler(GoneError)
    def _gone(request: Request, error: GoneError) -> Response:
        return Response(status_code=GONE)

    for module in (completions, chat, classify, embeddings, models, operations):
        app.include_router(module.router(desk))
    if desk.settings.loading:
        app.include_router(models.loading_router(desk))
    # The last is the outermost.
    app.add_middleware(BodyLimit, most=desk.settings.max_body)
    if desk.settings.keys:
        app.add_middleware(Keys, keys=desk.settings.keys)
    app.add_middleware(Noted, desk=desk)
    return app
