"""Answers that stream: server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from pydantic import BaseModel

from softprompt.errors import SoftpromptError
from softprompt.serve.errors import envelope

DONE = "data: [DONE]\n\n"


async def events(chunks: AsyncIterator[BaseModel]) -> AsyncIterator[str]:
    """Each chunk as an event. What goes wrong when the answer has begun can only be told in it."""
    try:
        async for chunk in chunks:
            yield f"data: {chunk.model_dump_json()}\n\n"
    except SoftpromptError as error:
        yield f"data: {json.dumps(envelope(error.http_status, str(error)))}\n\n"
    yield DONE
