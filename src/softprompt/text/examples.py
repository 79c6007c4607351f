"""Rows become examples: one sequence of token ids each, with a place for every virtual token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompt.errors import DataError, LengthError
from softprompt.text.task import Task
from softprompt.text.template import Anchor, Field, Slot, Start
from softprompt.text.tokens import PieceTokenizer
from softprompt.text.verbalizer import Verbalizer


@dataclass(frozen=True)
class Example:
    """One row as tokens.

    Attributes:
        tokens: everything before the target. A token id, or `-1 - v` for virtual token v of the row's prompt.
        field_at: where the first token that depends on the row stands; `len(tokens)` if none does.
        target: the answer's token ids; empty where the row has no answer.
        label: the answer's position among the labels; None for generation or without an answer.
        cut: how many field tokens were cut away.
        reads: the positions of `tokens` whose output is read, one for each of `target` if there is one; None where the
            answer is written behind the last token (or by a decoder of its own).
    """

    tokens: tuple[int, ...]
    field_at: int
    target: tuple[int, ...] = ()
    label: int | None = None
    cut: int = 0
    reads: tuple[int, ...] | None = None


class ExampleMaker:
    """Makes examples of one task for one tokenizer.

    Attributes:
        virtual: P, virtual tokens of the whole template.
        limit: the most tokens an example may have, its target included; None for no bound.
        verbalizer: the label words; None for generation.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, positions: int | None = None) -> None:
        """
        Args:
            task: its template's slots all have their lengths.
            positions: how many positions the model has.

        Raises:
            LengthError: slots, anchors and the longest label word alone are too long.
        """
        self.task = task
        self._tokenizer = PieceTokenizer(tokenizer)
        self._opening = task.template.opening
        self.verbalizer = Verbalizer(task, self._tokenizer) if task.classifies else None
        bounds = [b for b in (task.max_length, positions) if b is not None]
        self.limit = min(bounds) if bounds else None
        self._pieces = self._fixed_pieces()
        self.virtual = sum(1 for piece in self._pieces if isinstance(piece, tuple) for token in piece if token < 0)
        self._fixed = sum(len(p) for p in self._pieces if isinstance(p, tuple))
        self._check_limit(self._answer_room(()), None)

    def _fixed_pieces(self) -> list[tuple[int, ...] | Field]:
        """The template with anchors and slots as tokens, and the fields still open."""
        segments = self.task.template.segments
        pieces: list[tuple[int, ...] | Field] = [] if Start() in segments else [self._tokenizer.start]
        virtual = 0
        for segment in segments:
            if isinstance(segment, Slot):
                assert segment.tokens is not None, "slots are given their lengths first"
                pieces.append(tuple(-1 - v for v in range(virtual, virtual + segment.tokens)))
                virtual += segment.tokens
            elif isinstance(segment, Anchor):
                pieces.append(self._anchor(segment))
            elif isinstance(segment, Start):
                pieces.append(self._tokenizer.start)
            elif isinstance(segment, Field):
                pieces.append(segment)
        return pieces

    def _anchor(self, anchor: Anchor) -> tuple[int, ...]:
        opens, start = anchor is self._opening, self._tokenizer.start
        tokens = tuple(self._tokenizer.encode(anchor.text, opens=opens))
        # A template may write the beginning-of-text token itself; it stands there once.
        return tokens[len(start) :] if opens and tokens[: len(start)] == start else tokens

    def __call__(
        self, row: Mapping[str, Any], *, answered: bool = True, where: str | None = None, room_for: int = 1
    ) -> Example:
        """Make one example.

        Args:
            row: the fields' values.
            answered: whether the row must hold its answer.
            where: how an error names the row.
            room_for: how many answer tokens will be generated, where the row holds no answer and the task no labels.

        Raises:
            DataError: a field or the answer is missing, or is neither text nor a number.
            LabelError: the answer is none of the labels.
            LengthError: the row cannot fit even with its fields cut to nothing.
        """
        where = _named(row, where)
        target, label = self._answer(row, where) if answered else ((), None)
        room = None
        if self.limit is not None:
            answer = self._answer_room(target, room_for)
            self._check_limit(answer, where)
            room = self.limit - self._fixed - answer
        pieces, cut = self.fill(row, room, where=where)
        tokens: list[int] = []
        field_at: int | None = None
        for is_field, piece in pieces:
            if is_field and field_at is None:
                field_at = len(tokens)
            tokens.extend(piece)
        if not tokens:
            raise DataError("the row is empty and so is the template", where=where)
        return Example(tuple(tokens), len(tokens) if field_at is None else field_at, target, label, cut)

    def fill(
        self, row: Mapping[str, Any], room: int | None, *, where: str | None = None
    ) -> tuple[list[tuple[bool, Sequence[int]]], int]:
        """The template filled with a row, up to the target: its pieces in order, and how many field tokens were cut.

        Args:
            room: the most tokens of all fields together; None for all.
            where: how an error names the row.

        Returns:
            Of each piece whether it is a field, and its tokens. What the tokenizer puts before every text is the first,
            unless the template places it.

        Raises:
            DataError: a field is missing, or is neither text nor a number.
        """
        fields = [
            self._tokenizer.encode_data(p.blank + _text(row, p.name, where), opens=p is self._opening)
            for p in self._pieces
            if isinstance(p, Field)
        ]
        sizes = _shares([len(f) for f in fields], room)
        kept = iter([f[:n] for f, n in zip(fields, sizes, strict=True)])
        pieces: list[tuple[bool, Sequence[int]]] = [
            (True, next(kept)) if isinstance(p, Field) else (False, p) for p in self._pieces
        ]
        return pieces, sum(len(f) for f in fields) - sum(sizes)

    def label(self, row: Mapping[str, Any], where: str | None = None) -> int | None:
        """The position of a row's answer among the labels; None for generation.

        Raises:
            DataError: the answer is missing, or is neither text nor a number.
            LabelError: it is none of the labels.
        """
        where = _named(row, where)
        return None if self.verbalizer is None else self.verbalizer.index(_text(row, self.task.target, where), where)

    def all(self, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
        """Make an example of every row, answers included; an error names the row by its origin or its number (from 1).

        Raises:
            DataError: there is no row at all, and as `__call__`.
        """
        examples = [
            self(row, where=getattr(row, "where", None) or f"row {number}") for number, row in enumerate(rows, 1)
        ]
        if not examples:
            raise DataError("there is no row", instead="Give at least one.")
        return examples

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; the blank that the template puts before its target is taken off."""
        target = self.task.template.target
        return self._tokenizer.decode(list(ids), opens=target is self._opening).removeprefix(target.blank)

    def _answer(self, row: Mapping[str, Any], where: str | None) -> tuple[tuple[int, ...], int | None]:
        text = _text(row, self.task.target, where)
        if self.verbalizer is not None:
            label = self.verbalizer.index(text, where)
            word = self.verbalizer.words[label]
            return (word[:1] if self.verbalizer.by_first_token else word), label
        target = self.task.template.target
        ids = self._tokenizer.encode_data(target.blank + text, opens=target is self._opening)
        if self._tokenizer.end is not None:
            ids = [*ids, self._tokenizer.end]
        if not ids:
            raise DataError(f"the answer {self.task.target!r} is empty", where=where)
        return tuple(ids), None

    def _answer_room(self, target: Sequence[int], room_for: int = 1) -> int:
        """Positions kept free for the answer; the same for every label, so that what is cut gives none away."""
        if self.verbalizer is None:
            return len(target) or room_for
        return 1 if self.verbalizer.by_first_token else max(map(len, self.verbalizer.words))

    def _check_limit(self, answer: int, where: str | None) -> None:
        if self.limit is not None and self._fixed + answer > self.limit:
            raise LengthError(
                f"slots and hard text take {self._fixed} tokens and the answer {answer}, "
                f"but only {self.limit} are allowed",
                where=where,
                instead="Shorten the template, its slots or the answer, or raise max_length if the model has more "
                "positions.",
            )


def _named(row: Mapping[str, Any], where: str | None) -> str | None:
    """How an error names a row; one that is none is refused."""
    where = where or getattr(row, "where", None)
    if not isinstance(row, Mapping):
        raise DataError(f"the row is {type(row).__name__}, not fields by name", where=where)
    return where


def _text(row: Mapping[str, Any], name: str, where: str | None) -> str:
    if name not in row:
        raise DataError(
            f"field {name!r} is missing",
            where=where,
            instead=f"The row has {', '.join(map(repr, row)) or 'no field'}.",
        )
    value = row[name]
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise DataError(f"field {name!r} holds half a character (a lone surrogate)", where=where)
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"field {name!r} is {type(value).__name__}, not text", where=where)
    if value != value:
        raise DataError(f"field {name!r} is {value}, as tables write what is missing", where=where)
    return str(value)


def _shares(lengths: list[int], room: int | None) -> list[int]:
    """How much of each field is kept, so that they fill `room` together: the longest give first, down to one level."""
    if room is None or sum(lengths) <= room:
        return lengths
    kept = [0] * len(lengths)
    for rank, i in enumerate(order := sorted(range(len(lengths)), key=lengths.__getitem__)):
        kept[i] = min(lengths[i], room // (len(order) - rank))
        room -= kept[i]
    return kept
