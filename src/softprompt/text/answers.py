"""A row's answer, as each kind of task writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from softprompt.errors import DataError
from softprompt.text import fields
from softprompt.text.fields import Encoded
from softprompt.text.locate import locate
from softprompt.text.task import Task
from softprompt.text.tokens import PieceTokenizer
from softprompt.text.verbalizer import Verbalizer, label_index

BEGINS, ENDS = 1, 2
"""What a token is to a span of text: added up, for it may be both."""


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        target: tokens that are to be written; or what stands at each position that is read: a label's position, or
            `BEGINS` and `ENDS`. Empty where the answer is in `labels` alone.
        labels: positions of the labels that apply; for "feature-extraction" a number that rows of one kind share.
    """

    target: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()


def in_words(
    task: Task, row: Mapping[str, Any], where: str | None, tokenizer: PieceTokenizer, blank: str, opens: bool
) -> Answer:
    """Text that is to be generated, ended."""
    ids = tokenizer.encode_data(blank + fields.text(row, task.target, where), opens=opens)
    if tokenizer.end is not None:
        ids = [*ids, tokenizer.end]
    if not ids:
        raise DataError(f"the answer {task.target!r} is empty", where=where)
    return Answer(tuple(ids))


def position(task: Task, row: Mapping[str, Any], where: str | None) -> int:
    """The position of a row's label among the task's."""
    found = fields.value(row, task.target, where)
    return label_index(task.labels, fields.label(found, task.target, where), where)


def by_word(task: Task, row: Mapping[str, Any], where: str | None, verbalizer: Verbalizer) -> Answer:
    """One label, by its word."""
    label = position(task, row, where)
    word = verbalizer.words[label]
    return Answer(word[:1] if verbalizer.by_first_token else word, (label,))


def one_label(task: Task, row: Mapping[str, Any], where: str | None) -> Answer:
    """One label."""
    return Answer(labels=(position(task, row, where),))


def some_labels(task: Task, row: Mapping[str, Any], where: str | None) -> Answer:
    """Any number of labels: a list, or text with a bar between them."""
    named = fields.labels(row, task.target, where, "|")
    return Answer(labels=tuple(sorted({label_index(task.labels, name, where) for name in named})))


def of_words(task: Task, row: Mapping[str, Any], where: str | None, field: Encoded) -> Answer:
    """A label for each word of the field."""
    named, words = fields.labels(row, task.target, where), field.words or []
    if len(named) != len(words):
        raise DataError(
            f"field {task.field!r} has {len(words)} words, but {task.target!r} {len(named)} labels",
            where=where,
            instead=_other_field(task, lambda name: len(fields.several(row, name, where)) == len(named))
            or "Give both as lists of one length.",
        )
    return Answer(tuple(label_index(task.labels, name, where) for name in named))


def of_span(task: Task, row: Mapping[str, Any], where: str | None, field: Encoded) -> Answer:
    """Where in the field the answer stands: the first time, or from the character that `start` of a mapping says.

    SQuAD's own way is read as well: `{"text": [...], "answer_start": [...]}`, of which the first answer counts. An
    answer may be written in another Unicode form than the field (composed, decomposed).
    """
    whole, content = fields.value(row, task.target, where), fields.text(row, task.field or "", where)
    instead = 'Give text that stands there, or {"text": ..., "start": its first character, counted from 0}.'
    found, start = whole, None
    if isinstance(whole, Mapping):
        start = _first(whole.get("start", whole.get("answer_start")))
        found = _first(whole.get("text"))
    if found in ("", [], ()) or whole is None:
        raise DataError(
            f"the question has no answer, field {task.target!r} holds {str(whole)[:80] or repr(whole)}",
            where=where,
            instead=f"A {task.kind} finds an answer in every row: leave such rows out, or begin every {task.field!r} "
            'with a word for it ("none. ...") and give that for their answer.',
        )
    if not isinstance(found, (str, int, float)) or isinstance(start, bool) or not isinstance(start, int | None):
        raise DataError(f"field {task.target!r} holds {str(whole)[:80]}", where=where, instead=instead)
    answer = fields.as_text(found, task.target, where)
    place = locate(content, answer, start)
    if place is None:
        there = "" if start is None or start < 0 else f" at character {start}"
        raise DataError(
            f"the answer {answer[:80]!r} does not stand in field {task.field!r}{there}",
            where=where,
            instead=_other_field(task, lambda name: locate(fields.text(row, name, where), answer, start) is not None)
            or instead,
        )
    (begin, end), spans = place, field.spans or []
    inside = [i for i, (a, b) in enumerate(spans) if a < end and b > begin]
    if not inside:
        raise DataError(f"no token stands for the answer {answer[:80]!r}", where=where)
    return Answer(tuple(BEGINS * (i == inside[0]) + ENDS * (i == inside[-1]) for i in range(len(spans))))


def _other_field(task: Task, fits: Callable[[str], bool]) -> str | None:
    """The advice to name another field of the template, where an answer fits that."""
    other = next((name for name in task.template.fields if name != task.field and fits(name)), None)
    return other and (
        f"It goes with {{{other}}}: say that this is the field that is answered in, Task(..., field={other!r}) "
        f"(--field {other})."
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value


def in_common(task: Task, row: Mapping[str, Any], where: str | None) -> Answer:
    """A number for the answer's text: the same for the same text."""
    content = fields.text(row, task.target, where)
    return Answer(labels=(int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "big"),))
