"""What stands in a row: the fields' texts, and how they share the room there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.errors import DataError
from softprompt.text.tokens import PieceTokenizer, Spans


@dataclass(frozen=True)
class Encoded:
    """A field as tokens.

    Attributes:
        tokens: its token ids.
        spans: for each token the part of the field's text it was made from; only where that is asked for.
        words: for each word of the field which tokens it was made of, as first and behind the last; likewise.
    """

    tokens: tuple[int, ...]
    spans: Spans | None = None
    words: Spans | None = None


def value(row: Mapping[str, Any], name: str, where: str | None) -> Any:
    """What a row holds under a name.

    Raises:
        DataError: nothing.
    """
    if name not in row:
        raise DataError(
            f"field {name!r} is missing",
            where=where,
            instead=f"The row has {', '.join(map(repr, row)) or 'no field'}.",
        )
    return row[name]


def text(row: Mapping[str, Any], name: str, where: str | None) -> str:
    """A field that holds text, or a number that stands for it.

    Raises:
        DataError: it is missing, or neither.
    """
    return as_text(value(row, name, where), name, where)


def as_text(found: Any, name: str, where: str | None) -> str:
    """`found`, which stands under `name`, as text. Raises as `text`."""
    if isinstance(found, str):
        if not found.isascii() and any("\ud800" <= c <= "\udfff" for c in found):
            raise DataError(f"field {name!r} holds half a character (a lone surrogate)", where=where)
        return found
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        what = "null" if found is None else type(found).__name__
        raise DataError(
            f"field {name!r} is {what}, not text", where=where, instead="Give text or a number, or leave the row out."
        )
    if found != found:
        raise DataError(f"field {name!r} is {found}, as tables write what is missing", where=where)
    return str(found)


def label(found: Any, name: str, where: str | None) -> str | int:
    """A label that stands under `name`: text, or a whole number, which may count the labels. Raises as `text`."""
    return found if isinstance(found, int) and not isinstance(found, bool) else as_text(found, name, where)


def labels(row: Mapping[str, Any], name: str, where: str | None, separator: str | None = None) -> list[str | int]:
    """A field that holds several labels. Arguments, and what is raised, as in `several`."""
    found = value(row, name, where)
    if isinstance(found, (list, tuple)):
        return [label(part, name, where) for part in found]
    return [found] if isinstance(label(found, name, where), int) else [*several(row, name, where, separator)]


def several(row: Mapping[str, Any], name: str, where: str | None, separator: str | None = None) -> list[str]:
    """A field that holds several texts: a list, or one text with a separator between them (None: white space).

    Raises:
        DataError: it is missing, or something else.
    """
    found = value(row, name, where)
    if isinstance(found, (list, tuple)):
        return [as_text(part, name, where) for part in found]
    parts = as_text(found, name, where).split(separator)
    return [part.strip() for part in parts if part.strip()]


def encode(
    tokenizer: PieceTokenizer, row: Mapping[str, Any], name: str, blank: str, opens: bool, where: str | None
) -> Encoded:
    """A field's text as tokens."""
    return Encoded(tuple(tokenizer.encode_data(blank + text(row, name, where), opens=opens)))


def encode_words(
    tokenizer: PieceTokenizer, row: Mapping[str, Any], name: str, blank: str, opens: bool, where: str | None
) -> Encoded:
    """A field's words as tokens, a blank between them; words are those of a list, or what white space parts."""
    tokens: list[int] = []
    words = []
    for number, word in enumerate(several(row, name, where)):
        made = tokenizer.encode_data((" " if number else blank) + word, opens=opens and not number)
        words.append((len(tokens), len(tokens) + len(made)))
        tokens += made
    return Encoded(tuple(tokens), words=words)


def encode_spans(
    tokenizer: PieceTokenizer, row: Mapping[str, Any], name: str, blank: str, opens: bool, where: str | None
) -> Encoded:
    """A field's text as tokens that know where in it they stand."""
    content = text(row, name, where)
    tokens, spans = tokenizer.encode_data_with_spans(blank + content, opens=opens)
    return Encoded(tuple(tokens), [(max(0, a - len(blank)), max(0, b - len(blank))) for a, b in spans])


def shares(lengths: Sequence[int], room: int | None) -> list[int]:
    """How much of each field is kept, so that they fill `room` together: the longest give first, down to one level."""
    if room is None or sum(lengths) <= room:
        return list(lengths)
    kept = [0] * len(lengths)
    for rank, i in enumerate(order := sorted(range(len(lengths)), key=lengths.__getitem__)):
        kept[i] = min(lengths[i], room // (len(order) - rank))
        room -= kept[i]
    return kept
