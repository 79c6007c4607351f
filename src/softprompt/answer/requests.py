"""Requests: the prompts that are asked, and rows read for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.backbone.context import Stretch
from softprompt.collection import SavedPrompts
from softprompt.errors import RequestError
from softprompt.run.forward import Filling
from softprompt.run.plan import Tokens
from softprompt.run.vote import By, check_by
from softprompt.saved import SavedPrompt
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.task import Kind

CLASSIFYING: tuple[Kind, ...] = ("classification", "sequence-classification", "multi-label")
"""Kinds of tasks that choose labels for a row."""

VERBS: Mapping[Kind, str] = {
    **dict.fromkeys(CLASSIFYING, "classify"),
    "generation": "generate",
    "token-classification": "tag",
    "question-answering": "extract",
    "feature-extraction": "embed",
}
"""The method of the engine that answers a kind of task."""


WITHOUT_WRITING = tuple(kind for kind, verb in VERBS.items() if verb != "generate")
"""Kinds of tasks that are answered by what is there to choose from."""


@dataclass(frozen=True)
class Entry:
    """A prompt that can be asked.

    Attributes:
        prompt: as it was saved.
        maker: makes examples of rows, as its task answers them.
        writer: makes examples of rows whose answer is generated, whatever its task; None where it cannot write.
        filling: what fills its slots, compiled at the first row.
    """

    prompt: SavedPrompt
    maker: ExampleMaker
    writer: ExampleMaker | None
    filling: Filling

    @property
    def members(self) -> tuple[Entry, ...]:
        """Itself: what is asked one prompt at a time need not tell one from several."""
        return (self,)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids that were written."""
        return self.maker.decode(ids)

    @property
    def compiled(self) -> dict[tuple[Tokens, Tokens], list[Stretch]]:
        """The keys and values it was compiled to, until now."""
        assert self.filling.compiled is not None, "it is not being trained"
        return self.filling.compiled


@dataclass(frozen=True)
class Ensemble:
    """Prompts that are asked as one.

    Attributes:
        prompt: as they were saved.
        members: each of them.
    """

    prompt: SavedPrompts
    members: tuple[Entry, ...]


@dataclass(frozen=True)
class AskedRow:
    """A row that was read for a prompt."""

    row: Mapping[str, Any]
    entry: Entry
    example: Example


def check_request(request: object, number: int) -> None:
    """
    Raises:
        RequestError: it is no pair of a prompt's name and a row.
    """
    if not isinstance(request, tuple) or len(request) != 2:
        raise RequestError(
            f"it is {type(request).__name__} {str(request)[:40]!r}, not a prompt's name and a row",
            where=f"request {number}",
            instead='Give a list of pairs: [("topic", {"text": "..."})].',
        )


def chosen_by(by: By | None, asked: Sequence[tuple[AskedRow, ...]]) -> By:
    """How the ensembles that are asked choose; raises as `check_by`."""
    return check_by(by, not asked or any(len(members) > 1 for members in asked))


Reading = Callable[[Entry, Mapping[str, Any], str], Example]
"""Reads a row for a prompt; the last is how an error names the row."""


def asking(*kinds: str) -> Reading:
    """Reads a row for a prompt whose task is of one of these kinds."""

    def example(entry: Entry, row: Mapping[str, Any], where: str) -> Example:
        kind = entry.prompt.task.kind
        if kind not in kinds:
            what = "it generates, it has no labels to choose from" if kind == "generation" else f"its task is {kind}"
            raise RequestError(what, where=where, instead=f"Use {VERBS[kind]}.")
        return entry.maker(row, answered=False, where=where)

    return example


def to_write(entry: Entry, row: Mapping[str, Any], where: str, room_for: int) -> Example:
    """Reads a row whose answer is generated, in `room_for` tokens at most."""
    if entry.writer is None:
        raise RequestError(
            f"its task is {entry.prompt.task.kind}, and it writes nothing",
            where=where,
            instead=f"Use {VERBS[entry.prompt.task.kind]}.",
        )
    return entry.writer(row, answered=False, where=where, room_for=room_for)


def to_answer(entry: Entry, row: Mapping[str, Any], where: str, room_for: int) -> Example:
    """Reads a row for whatever answers its prompt's kind of task."""
    maker = entry.writer if entry.prompt.task.kind == "generation" and entry.writer is not None else entry.maker
    return maker(row, answered=False, where=where, room_for=room_for)


def no_writers(prompts: SavedPrompts, where: str | None = None) -> RequestError:
    """What to tell of an ensemble that is asked for more than labels.

    Args:
        where: how the error calls it.
    """
    return RequestError(
        f"it is an ensemble of {len(prompts.members)} prompts: they vote on labels, but give no other answer together",
        where=where,
        instead=f"Ask one of its prompts by itself, such as {next(iter(prompts.members))}.",
    )
