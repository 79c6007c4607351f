"""`/v1/completions`"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from softprompt.answer.requests import AskedRow, Ensemble, Entry
from softprompt.answer.sampling import Token
from softprompt.errors import RequestError
from softprompt.serve.desk import Call, Desk, chooses, only_field
from softprompt.serve.errors import RESPONSES
from softprompt.serve.events import events
from softprompt.serve.schema import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from softprompt.serve.writing import Spelling, as_text, check_choosing, row_of, sampling_of, usage


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["writing"], responses=dict(RESPONSES))
    spelled = Spelling(desk.service.backbone.tokenizer)

    @routes.post("/v1/completions", response_model=Completion, response_model_exclude_none=False)
    async def completions(asked: CompletionRequest, request: Request) -> Any:
        """Write to a prompt's rows. A prompt whose task has labels answers with the label it chooses."""
        call = desk.call(request, "cmpl")
        entry, most = desk.entry(call, asked.model), asked.max_tokens or 16
        desk.check_tokens(most, "max_tokens")
        rows = _rows(desk, entry, asked)
        if chooses(entry):
            check_choosing(asked, asked.logprobs)
            found = await desk.choose(request, call, [(asked.model, row) for row in rows])
            texts = [as_text(answer) for answer in found]
            choices = [CompletionChoice(index=i, text=t, finish_reason="stop") for i, t in enumerate(texts)]
            if not asked.stream:
                return _whole(call, asked, choices)
            return StreamingResponse(events(_chunks(call, asked, _ready(choices))), media_type="text/event-stream")
        sampling = sampling_of(asked, most, asked.logprobs)
        read = await desk.read(lambda: [_read(desk, entry, row, most, i) for i, row in enumerate(rows)])
        if asked.stream:
            if len(read) > 1:
                raise RequestError("several prompts are not streamed", where="prompt", instead="Send one at a time.")
            pieces = await desk.stream(call, read[0], sampling)
            return StreamingResponse(
                events(_chunks(call, asked, _told(pieces, asked, spelled))), media_type="text/event-stream"
            )
        answers = await desk.write(request, call, read, sampling)
        each = [answer for own in answers for answer in own]
        return _whole(
            call,
            asked,
            [
                CompletionChoice(
                    index=i, text=a.text, finish_reason=a.finish, logprobs=_logprobs(asked, a.tokens, spelled, 0)
                )
                for i, a in enumerate(each)
            ],
        )

    return routes


def _rows(desk: Desk, entry: Entry | Ensemble | None, asked: CompletionRequest) -> list[Mapping[str, Any]]:
    """The rows of a request; of the model itself the text alone."""
    if (asked.prompt is None) == (asked.fields is None):
        raise RequestError("it takes a prompt or fields", where="prompt", instead="Give one of the two.")
    if asked.fields is not None:
        if entry is None:
            raise RequestError("the model itself has no fields", where="fields", instead="Give prompt.")
        desk.check_length(*(str(value) for value in asked.fields.values()))
        return [asked.fields]
    texts = [asked.prompt] if isinstance(asked.prompt, str) else list(asked.prompt or ())
    desk.check_length(*texts)
    name = "text" if entry is None else only_field(entry, "Give fields instead of prompt, with a value for each.")
    return [{name: text} for text in texts]


def _read(desk: Desk, entry: Entry | Ensemble | None, row: Mapping[str, Any], most: int, number: int) -> AskedRow:
    where = f"prompt {number + 1}"
    if entry is not None:
        return row_of(entry, row, most, where)
    assert desk.plain is not None, "it can write, or its name would be unknown"
    return desk.plain.text(row["text"], most, where)


def _logprobs(
    asked: CompletionRequest, tokens: Sequence[Token], spelled: Spelling, offset: int
) -> CompletionLogprobs | None:
    if asked.logprobs is None:
        return None
    texts = [spelled(token.id) for token in tokens]
    return CompletionLogprobs(
        tokens=texts,
        token_logprobs=[token.logprob or 0.0 for token in tokens],
        top_logprobs=[{spelled(i): logprob for i, logprob in token.top} for token in tokens],
        text_offset=[offset + sum(map(len, texts[:i])) for i in range(len(texts))],
    )


def _whole(call: Call, asked: CompletionRequest, choices: list[CompletionChoice]) -> Completion:
    return Completion(
        id=call.id, created=call.created, model=asked.model, choices=choices, usage=usage(call.read, call.written)
    )


async def _ready(choices: Sequence[CompletionChoice]) -> AsyncIterator[CompletionChoice]:
    for choice in choices:
        yield choice


async def _told(pieces: AsyncIterator[Any], asked: CompletionRequest, spelled: Spelling) -> AsyncIterator[Any]:
    offsets: dict[int, int] = {}
    async for piece in pieces:
        offset = offsets.get(piece.number, 0)
        offsets[piece.number] = offset + sum(len(spelled(token.id)) for token in piece.tokens)
        yield CompletionChoice(
            index=piece.number,
            text=piece.text,
            finish_reason=piece.finish,
            logprobs=_logprobs(asked, piece.tokens, spelled, offset),
        )


async def _chunks(
    call: Call, asked: CompletionRequest, choices: AsyncIterator[CompletionChoice]
) -> AsyncIterator[Completion]:
    async for choice in choices:
        yield Completion(id=call.id, created=call.created, model=asked.model, choices=[choice])
    if asked.stream_options is not None and asked.stream_options.include_usage:
        yield _whole(call, asked, [])
