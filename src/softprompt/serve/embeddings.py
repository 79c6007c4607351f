"""`/v1/embeddings`: vectors, by prompts whose task is feature extraction."""

from __future__ import annotations

import base64

import numpy as np
from fastapi import APIRouter, Request

from softprompt.answer.answers import Embedding
from softprompt.errors import RequestError
from softprompt.serve.desk import Desk, only_field
from softprompt.serve.errors import RESPONSES
from softprompt.serve.schema import Embedded, EmbeddingRequest, EmbeddingResponse
from softprompt.serve.writing import usage


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["choosing"], responses=dict(RESPONSES))

    @routes.post("/v1/embeddings", response_model=EmbeddingResponse)
    async def embeddings(asked: EmbeddingRequest, request: Request) -> EmbeddingResponse:
        """A vector for each text."""
        call = desk.call(request, "embd")
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        desk.check_length(*texts)
        entry = desk.chosen(call, asked.model)
        if entry.prompt.task.kind != "feature-extraction":
            raise RequestError(
                f"its task is {entry.prompt.task.kind}, it gives no vectors",
                where=asked.model,
                instead="Ask /v1/classify, or a prompt that was trained with kind='feature-extraction'.",
            )
        name = only_field(entry, "Only templates with one field can be asked here.")
        answers = await desk.choose(request, call, [(asked.model, {name: text}) for text in texts])
        data = [
            Embedded(index=i, embedding=_packed(a.vector) if asked.encoding_format == "base64" else list(a.vector))
            for i, a in enumerate(answers)
            if isinstance(a, Embedding)
        ]
        return EmbeddingResponse(model=asked.model, data=data, usage=usage(call.read, 0))

    return routes


def _packed(vector: tuple[float, ...]) -> str:
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
