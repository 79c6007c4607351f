"""`/health` and `/metrics`, for whoever runs the server."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from softprompt.serve.desk import Desk
from softprompt.serve.schema import Health


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["operations"])
    service, metrics = desk.service, desk.metrics

    @routes.get("/health", response_model=Health)
    async def health(request: Request) -> Health:
        """Whether the server is there."""
        desk.call(request, "health")
        prompts = len(service.library.folders)
        return Health(model=desk.name, prompts=prompts, waiting=service.waiting, writing=service.writing)

    @routes.get("/metrics", response_class=Response)
    async def counted(request: Request) -> Response:
        """Numbers, as Prometheus reads them."""
        desk.call(request, "metrics")
        library = service.library
        names, loaded, size = service.read(lambda: (len(library.folders), len(library.prompts), library.nbytes))
        metrics.waiting.set(service.waiting)
        metrics.writing.set(service.writing)
        metrics.prompts.set(names)
        metrics.loaded.set(loaded)
        metrics.bytes.set(size)
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return routes
