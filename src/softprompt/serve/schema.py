"""What is sent and answered: OpenAI's shapes, and those of what OpenAI has none for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

MOST_ROWS = 2048
"""Rows of one request."""


def _encodable(text: str) -> str:
    """JSON can spell halves of characters, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        raise ValueError("it holds half of a character (a lone surrogate)") from cause
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Fields = dict[Text, Text | int | float | list[Text]]
"""A row: the fields of a prompt's template by name."""

Name = Annotated[Text, Field(min_length=1, max_length=256)]


class Asked(BaseModel):
    """A request. A field that is not known is refused: it would have no effect."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(Asked):
    include_usage: bool = False


class WritingRequest(Asked):
    """What completions and chat completions have in common."""

    model: Name = Field(description="The name of a prompt; or of the model itself, to ask that without a prompt.")
    temperature: float | None = Field(1.0, ge=0, le=2, description="0 takes the likeliest token every time.")
    top_p: float | None = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="Draw from so many tokens at most; 0 or -1 for no bound.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="With one, the same request is answered alike.")
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    n: int | None = Field(1, ge=1, le=128)
    presence_penalty: float | None = Field(0.0, ge=-2, le=2)
    frequency_penalty: float | None = Field(0.0, ge=-2, le=2)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="Not looked at.")
    metadata: dict[str, JsonValue] | None = Field(None, description="Not looked at.")


class CompletionRequest(WritingRequest):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "titles", "prompt": "Shares fell sharply on Monday.", "max_tokens": 16, "temperature": 0},
                {"model": "answers", "fields": {"question": "Who won?", "text": "The final ..."}},
            ]
        }
    )

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_ROWS)] | None = Field(
        None, description="The text of the template's only field; several give several choices."
    )
    fields: Fields | None = Field(None, description="Instead of `prompt`, where a template has several fields.")
    max_tokens: int | None = Field(16, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    suffix: Literal[""] | None = None


class Message(Asked):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[ContentPart]
    name: Text | None = None


class ContentPart(Asked):
    type: Literal["text"]
    text: Text


class ChatRequest(WritingRequest):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "titles", "messages": [{"role": "user", "content": "Shares fell."}], "temperature": 0}
            ]
        }
    )

    messages: list[Message] = Field(
        min_length=1,
        max_length=MOST_ROWS,
        description="A conversation, which the model's own chat template writes out; to a prompt, one message of a "
        "user, which fills the only field of its template.",
    )
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


Names = Name | Annotated[list[Name], Field(min_length=1, max_length=MOST_ROWS)]
Inputs = Text | Fields | Annotated[list[Text | Fields], Field(min_length=1, max_length=MOST_ROWS)]


class ClassifyRequest(Asked):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "topic", "input": "Shares fell sharply on Monday."},
                {"model": ["topic", "tone"], "input": ["Shares fell sharply on Monday.", "The final was a joy."]},
                {"model": "answers", "input": {"question": "Who won?", "text": "The final ..."}},
            ]
        }
    )

    model: Names = Field(description="A prompt, or several: each answers every text, which is read once.")
    input: Inputs = Field(description="A text, or the fields of a template by name; or many of these.")
    by: Literal["vote", "mean"] | None = Field(None, description="How ensembles choose; for ensembles only.")
    user: Text | None = Field(None, description="Not looked at.")


class Classified(BaseModel):
    """The answer of one prompt to one text. What it holds depends on the kind of task: `label` and `probabilities` of a
    classification; `labels` and `probabilities` where several labels may apply, or where each word has one; `span`
    where the answer is a part of the text."""

    index: int = Field(description="Of the text, from 0.")
    model: str
    task: str
    label: str | None = None
    labels: list[str | None] | None = None
    probabilities: dict[str, float] | list[float | None] | None = None
    span: dict[str, Any] | None = None
    cut: int = Field(0, description="Tokens of the text that were cut away, because it was too long.")


class ClassifyResponse(BaseModel):
    id: str
    object: Literal["list"] = "list"
    created: int
    data: list[Classified] = Field(description="All prompts' answers to the first text, then to the next.")
    usage: Usage


class EmbeddingRequest(Asked):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "likeness", "input": ["one text", "another text"]}]}
    )

    model: Name
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_ROWS)]
    encoding_format: Literal["float", "base64"] | None = "float"
    user: Text | None = Field(None, description="Not looked at.")


class Embedded(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingResponse(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedded]
    usage: Usage


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["softprompt"] = "softprompt"
    root: str
    parent: str | None = None
    task: str | None = Field(
        default=None, description="Of a prompt, where it is in memory: what kind of answers it gives."
    )
    labels: list[str] | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class LoadRequest(Asked):
    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt_name": "topic", "prompt_path": "prompts/topic"}]}
    )

    prompt_name: Name
    prompt_path: Annotated[Text, Field(min_length=1, max_length=4096)]
    load_inplace: bool = Field(False, description="Replace a prompt of that name.")


class UnloadRequest(Asked):
    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt_name": "topic"}]})

    prompt_name: Name


class LoadLoraRequest(Asked):
    """The same in the words of servers of LoRA adapters."""

    lora_name: Name
    lora_path: Annotated[Text, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False


class UnloadLoraRequest(Asked):
    lora_name: Name
    lora_int_id: int | None = Field(None, description="Not looked at.")


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    model: str
    prompts: int
    waiting: int
    writing: int


Message.model_rebuild()
