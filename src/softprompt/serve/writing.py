"""What completions and chat completions share: a request becomes rows, sampling, and text with its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompt.answer.answers import Answer, Classification, Labelling
from softprompt.answer.requests import AskedRow, Ensemble, Entry, no_writers, to_write
from softprompt.answer.sampling import Sampling, Token
from softprompt.errors import SettingsError
from softprompt.serve.schema import TopLogprob, Usage, WritingRequest


def sampling_of(asked: WritingRequest, max_new_tokens: int, logprobs: int | None) -> Sampling:
    """How an answer is written, as a request says it; what is null is as if it were left out."""

    def given(name: str) -> Any:
        value = getattr(asked, name)
        return type(asked).model_fields[name].default if value is None else value

    stop = asked.stop or ()
    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=given("temperature"),
        top_p=given("top_p"),
        top_k=max(0, asked.top_k or 0),
        seed=asked.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logprobs=logprobs,
        n=given("n"),
        presence_penalty=given("presence_penalty"),
        frequency_penalty=given("frequency_penalty"),
    )


def row_of(entry: Entry | Ensemble, row: Mapping[str, Any], max_new_tokens: int, where: str) -> AskedRow:
    """A row that is written to.

    Raises:
        RequestError: the prompt writes nothing, or the row does not fit its template.
    """
    if isinstance(entry, Ensemble):
        raise no_writers(entry.prompt, where)
    return AskedRow(row, entry, to_write(entry, row, where, max_new_tokens))


def check_choosing(asked: WritingRequest, logprobs: object) -> None:
    """
    Raises:
        SettingsError: more than a label is asked of a prompt that chooses one.
    """
    for name, value in (("n", (asked.n or 1) > 1), ("logprobs", logprobs)):
        if value:
            raise SettingsError(
                "this prompt chooses among its labels",
                where=name,
                instead="Leave it out; /v1/classify tells the probability of every label.",
            )


def as_text(answer: Answer) -> str:
    """The labels that were chosen, in words."""
    if isinstance(answer, Classification):
        return answer.label
    assert isinstance(answer, Labelling), "nothing else is chosen"
    return ", ".join(answer.labels)


def usage(read: int, written: int) -> Usage:
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


class Spelling:
    """Tokens as text, one by one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._decode: Callable[[Sequence[int]], str] = partial(tokenizer.decode, skip_special_tokens=False)

    def __call__(self, token: int) -> str:
        return self._decode([token])

    def top(self, token: Token) -> list[TopLogprob]:
        return [self.one(i, logprob) for i, logprob in token.top]

    def one(self, token: int, logprob: float) -> TopLogprob:
        text = self(token)
        # Half a character has no bytes that its text tells.
        return TopLogprob(token=text, logprob=logprob, bytes=None if "\ufffd" in text else list(text.encode()))
