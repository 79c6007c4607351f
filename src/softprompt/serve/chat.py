"""`/v1/chat/completions`"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from softprompt.answer.requests import AskedRow, Ensemble, Entry
from softprompt.answer.sampling import Token
from softprompt.errors import RequestError
from softprompt.serve.calls import Piece
from softprompt.serve.desk import Call, Desk, chooses, only_field
from softprompt.serve.errors import RESPONSES
from softprompt.serve.events import events
from softprompt.serve.schema import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    Message,
    TokenLogprob,
)
from softprompt.serve.writing import Spelling, as_text, check_choosing, row_of, sampling_of, usage

USUAL = 256
"""Tokens of an answer where the request does not say."""


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["writing"], responses=dict(RESPONSES))
    spelled = Spelling(desk.service.backbone.tokenizer)

    @routes.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat(asked: ChatRequest, request: Request) -> Any:
        """Answer a conversation. A prompt whose task has labels answers with the label it chooses."""
        call = desk.call(request, "chatcmpl")
        entry = desk.entry(call, asked.model)
        most = asked.max_completion_tokens or asked.max_tokens or min(USUAL, desk.settings.max_new_tokens)
        desk.check_tokens(most, "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens")
        desk.check_length(*map(_text, asked.messages))
        if asked.top_logprobs and not asked.logprobs:
            raise RequestError("it does nothing without logprobs", where="top_logprobs", instead="Add logprobs=true.")
        if entry is not None and chooses(entry):
            check_choosing(asked, asked.logprobs)
            field = only_field(entry, _SEVERAL)
            (answer,) = await desk.choose(request, call, [(asked.model, {field: _question(asked.messages)})])
            if asked.stream:
                piece = Piece(0, as_text(answer), (), "stop")
                return StreamingResponse(
                    events(_chunks(call, asked, _ready([piece]), spelled)), media_type="text/event-stream"
                )
            message = ChatMessage(content=as_text(answer))
            return _whole(call, asked, [ChatChoice(index=0, message=message, finish_reason="stop")])
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        sampling = sampling_of(asked, most, logprobs)
        (row,) = await desk.read(lambda: [_read(desk, entry, asked, most)])
        if asked.stream:
            pieces = await desk.stream(call, row, sampling)
            return StreamingResponse(events(_chunks(call, asked, pieces, spelled)), media_type="text/event-stream")
        (answers,) = await desk.write(request, call, [row], sampling)
        return _whole(
            call,
            asked,
            [
                ChatChoice(
                    index=i,
                    message=ChatMessage(content=a.text),
                    finish_reason=a.finish or "length",
                    logprobs=_logprobs(asked, a.tokens, spelled),
                )
                for i, a in enumerate(answers)
            ],
        )

    return routes


_SEVERAL = "Ask /v1/completions with fields, a value for each."


def _read(desk: Desk, entry: Entry | Ensemble | None, asked: ChatRequest, most: int) -> AskedRow:
    if entry is not None:
        return row_of(entry, {only_field(entry, _SEVERAL): _question(asked.messages)}, most, "messages")
    assert desk.plain is not None, "it can write, or its name would be unknown"
    return desk.plain.conversation([{"role": m.role, "content": _text(m)} for m in asked.messages], most, "messages")


def _text(message: Message) -> str:
    return message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)


def _question(messages: Sequence[Message]) -> str:
    """What is said to a prompt. It was learned for the rows of its template, in which no conversation stands.

    Raises:
        RequestError: more is sent than the message of a user.
    """
    if [m.role for m in messages] != ["user"]:
        raise RequestError(
            f"a prompt answers one message of a user, not {', '.join(m.role for m in messages)[:80]}",
            where="messages",
            instead="Send that alone; a conversation is for the model itself.",
        )
    return _text(messages[0])


def _logprobs(asked: ChatRequest, tokens: Sequence[Token], spelled: Spelling) -> ChatLogprobs | None:
    if not asked.logprobs:
        return None
    return ChatLogprobs(
        content=[
            TokenLogprob(**spelled.one(t.id, t.logprob or 0.0).model_dump(), top_logprobs=spelled.top(t))
            for t in tokens
        ]
    )


def _whole(call: Call, asked: ChatRequest, choices: list[ChatChoice]) -> ChatCompletion:
    return ChatCompletion(
        id=call.id, created=call.created, model=asked.model, choices=choices, usage=usage(call.read, call.written)
    )


async def _ready(pieces: Sequence[Piece]) -> AsyncIterator[Piece]:
    for piece in pieces:
        yield piece


async def _chunks(
    call: Call, asked: ChatRequest, pieces: AsyncIterator[Piece], spelled: Spelling
) -> AsyncIterator[ChatChunk]:
    def chunk(*choices: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(id=call.id, created=call.created, model=asked.model, choices=list(choices))

    for number in range(asked.n or 1):
        yield chunk(ChatChunkChoice(index=number, delta=ChatDelta(role="assistant", content="")))
    async for piece in pieces:
        yield chunk(
            ChatChunkChoice(
                index=piece.number,
                delta=ChatDelta(content=piece.text),
                finish_reason=piece.finish,
                logprobs=_logprobs(asked, piece.tokens, spelled),
            )
        )
    if asked.stream_options is not None and asked.stream_options.include_usage:
        last = chunk()
        last.usage = usage(call.read, call.written)
        yield last
