"""`/v1/classify`: many prompts about many texts, each text read once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from softprompt.answer.answers import Answer, Classification, Labelling, Span, Tagging
from softprompt.errors import RequestError
from softprompt.serve.desk import Desk, only_field
from softprompt.serve.errors import RESPONSES
from softprompt.serve.schema import MOST_ROWS, Classified, ClassifyRequest, ClassifyResponse, Fields
from softprompt.serve.writing import usage

_SEVERAL = "Give an object with a value for each field as input."


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["choosing"], responses=dict(RESPONSES))

    @routes.post("/v1/classify", response_model=ClassifyResponse, response_model_exclude_none=True)
    async def classify(asked: ClassifyRequest, request: Request) -> ClassifyResponse:
        """Choose a label for each text: with one prompt, or with several, each of which answers every text."""
        call = desk.call(request, "classify")
        names = [asked.model] if isinstance(asked.model, str) else asked.model
        inputs: Sequence[str | Fields] = asked.input if isinstance(asked.input, list) else [asked.input]
        if len(names) * len(inputs) > MOST_ROWS:
            raise RequestError(
                f"{len(names)} prompts about {len(inputs)} texts are more than {MOST_ROWS} answers",
                where="input",
                instead="Send fewer at once.",
            )
        desk.check_length(*(_text(content) for content in inputs))
        entries = {name: desk.chosen(call, name) for name in dict.fromkeys(names)}
        call.model = names[0] if len(names) == 1 else ""
        requests = [
            (name, {only_field(entries[name], _SEVERAL): content} if isinstance(content, str) else content)
            for content in inputs
            for name in names
        ]
        answers = await desk.choose(request, call, requests, asked.by)
        data = [
            _classified(i // len(names), name, entries[name].prompt.task.kind, answer)
            for i, ((name, _), answer) in enumerate(zip(requests, answers, strict=True))
        ]
        return ClassifyResponse(id=call.id, created=call.created, data=data, usage=usage(call.read, 0))

    return routes


def _text(content: str | Fields) -> str:
    return content if isinstance(content, str) else "".join(str(value) for value in content.values())


def _classified(index: int, model: str, task: str, answer: Answer) -> Classified:
    found: dict[str, Any]
    match answer:
        case Classification(label, probabilities):
            found = {"label": label, "probabilities": dict(probabilities)}
        case Labelling(labels, probabilities):
            found = {"labels": list(labels), "probabilities": dict(probabilities)}
        case Tagging(labels, probabilities):
            found = {"labels": list(labels), "probabilities": list(probabilities)}
        case Span(text, start, end, probability):
            found = {"span": {"text": text, "start": start, "end": end, "probability": probability}}
        case _:
            raise RequestError(
                f"its task is {task}, which chooses nothing", where=model, instead="Ask /v1/embeddings for vectors."
            )
    return Classified(index=index, model=model, task=task, cut=answer.cut, **found)
