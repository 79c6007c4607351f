"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from softprompt.errors import SoftpromptError

_LOG = logging.getLogger("softprompt.serve")

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

RETRY_AFTER = "1"
"""Seconds after which a client may try again."""


class ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(BaseModel):
    """What every answer with a status of 400 or above holds."""

    error: ErrorDetails


RESPONSES: Mapping[int | str, dict[str, Any]] = {
    400: {"model": ErrorEnvelope, "description": "The request cannot be met as it stands."},
    401: {"model": ErrorEnvelope, "description": "No key, or a wrong one."},
    404: {"model": ErrorEnvelope, "description": "There is no such model."},
    413: {"model": ErrorEnvelope, "description": "The body is too large."},
    429: {"model": ErrorEnvelope, "description": "Too many requests are waiting."},
    503: {"model": ErrorEnvelope, "description": "The server is closing."},
    504: {"model": ErrorEnvelope, "description": "It was not answered in time."},
}
"""For the description of each route."""


def envelope(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorEnvelope(error=ErrorDetails(message=message, type=kind, param=param, code=code)).model_dump()


def refusal(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An answer that says what was wrong."""
    headers = {"Retry-After": RETRY_AFTER} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(envelope(status, message, param=param, code=code), status, headers)


def of_ours(error: SoftpromptError) -> JSONResponse:
    """An error of the library's."""
    code = "model_not_found" if error.http_status == 404 else None
    param = "model" if code else error.where
    return refusal(error.http_status, str(error), param=param, code=code)


def add_handlers(app: FastAPI) -> None:
    """Have all errors told in one form; what was not foreseen is logged, and told without details."""

    @app.exception_handler(SoftpromptError)
    def _ours(request: Request, error: SoftpromptError) -> JSONResponse:
        return of_ours(error)

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        # A part of a union is named by its type, which is none of the request's.
        if not place and first["type"] == "model_attributes_type":
            return refusal(400, "the body is not read as JSON; send an object, with Content-Type: application/json")
        where = ".".join(part for part in place if not part.endswith("]") and not part.startswith("function-"))
        message = first["msg"].removeprefix("Value error, ")
        return refusal(400, f"{where}: {message}" if where else message, param=where or None)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        answer = refusal(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    def _unforeseen(request: Request, error: Exception) -> JSONResponse:
        _LOG.error("unforeseen", exc_info=error)
        return refusal(500, "the server failed at this request; its log says why")
