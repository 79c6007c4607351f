"""A row's answer, as each kind of task writes it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from softprompt.errors import DataError
from softprompt.text import fields
from softprompt.text.fields import Encoded
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


def by_word(task: Task, row: Mapping[str, Any], where: str | None, verbalizer: Verbalizer) -> Answer:
    """One label, by its word."""
    label = verbalizer.index(fields.text(row, task.target, where), where)
    word = verbalizer.words[label]
    return Answer(word[:1] if verbalizer.by_first_token else word, (label,))


def one_label(task: Task, row: Mapping[str, Any], where: str | None) -> Answer:
    """One label."""
    return Answer(labels=(label_index(task.labels, fields.text(row, task.target, where), where),))


def some_labels(task: Task, row: Mapping[str, Any], where: str | None) -> Answer:
    """Any number of labels: a list, or text with a bar between them."""
    named = fields.several(row, task.target, where, "|")
    return Answer(labels=tuple(sorted({label_index(task.labels, name, where) for name in named})))


def of_words(task: Task, row: Mapping[str, Any], where: str | None, field: Encoded) -> Answer:
    """A label for each word of the field."""
    named, words = fields.several(row, task.target, where), field.words or []
    if len(named) != len(words):
        raise DataError(
            f"field {task.field!r} has {len(words)} words, but {task.target!r} {len(named)} labels",
            where=where,
            instead="Give both as lists of one length.",
        )
    return Answer(tuple(label_index(task.labels, name, where) for name in named))


def of_span(task: Task, row: Mapping[str, Any], where: str | None, field: Encoded) -> Answer:
    """Where in the field the answer stands: the first time, or from the character that `start` of a mapping says.

    SQuAD's own way is read as well: `{"text": [...], "answer_start": [...]}`, of which the first answer counts.
    """
    whole, content = fields.value(row, task.target, where), fields.text(row, task.field or "", where)
    instead = 'Give text that stands there, or {"text": ..., "start": its first character, counted from 0}.'
    found, start = whole, None
    if isinstance(whole, Mapping):
        start = _first(whole.get("start", whole.get("answer_start")))
        found = _first(whole.get("text"))
    if not isinstance(found, (str, int, float)) or isinstance(start, bool) or not isinstance(start, int | None):
        raise DataError(f"field {task.target!r} holds {str(whole)[:80]}", where=where, instead=instead)
    answer = fields.as_text(found, task.target, where)
    if start is None:
        start = content.find(answer) if answer else -1
    if not answer or start < 0 or content[start : start + len(answer)] != answer:
        there = "" if content[max(0, start) :].startswith(answer) or start < 0 else f" at character {start}"
        raise DataError(
            f"the answer {answer[:80]!r} does not stand in field {task.field!r}{there}", where=where, instead=instead
        )
    end, spans = start + len(answer), field.spans or []
    inside = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
    if not inside:
        raise DataError(f"no token stands for the answer {answer[:80]!r}", where=where)
    return Answer(tuple(BEGINS * (i == inside[0]) + ENDS * (i == inside[-1]) for i in range(len(spans))))


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value


def in_common(task: Task, row: Mapping[str, Any], where: str | None) -> Answer:
    """A number for the answer's text: the same for the same text."""
    content = fields.text(row, task.target, where)
    return Answer(labels=(int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "big"),))
