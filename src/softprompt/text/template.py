r"""Templates: hard text with holes, some of them learned.

    "{soft:20}Article: {text}\nTopic: {label}"
    "{soft:3}{mask}{soft:3}{text}{soft:3}"

`{soft}` / `{soft:N}` is a slot of learned vectors (N of them, or as many as the method has), `{name}` a field of the
row (`{text}`, `{본문}`: any identifier). Where the model answers stands `{label}`, last, or, for an encoder, `{mask}`,
anywhere; a template for a trained head has neither. `{bos}` (or `{cls}`) is what the tokenizer puts before every text;
without it that comes first of all. `{sep}` is what the tokenizer puts behind every text; encoders and encoder-decoders
are given that at the end, too, unless it stands there already. `{{` and `}}` are literal braces.
Whatever else stands there is hard text: an *anchor*.

A blank before a field or the answer belongs to what follows it (`"Topic: {label}"` asks for `" sports"`), because that
is how byte-pair tokenizers write a word inside a line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import ClassVar

from softprompt.errors import TemplateError

_HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NESTED = re.compile(r"\{[^{}]*(\{[^{}]*\})")
# Six digits are more than any model has positions; more of them are a slip.
_LENGTH = re.compile(r"0*[1-9][0-9]{0,5}", re.ASCII)


@dataclass(frozen=True)
class Anchor:
    """Hard text."""

    text: str


@dataclass(frozen=True)
class Slot:
    """A place for learned vectors; `tokens` None takes the method's own number."""

    tokens: int | None = None


@dataclass(frozen=True)
class Field:
    """A field of the row; `blank` is the white space that goes in front of it."""

    name: str
    blank: str = ""


@dataclass(frozen=True)
class Start:
    """What the tokenizer puts before every text; `name` is how the template writes it."""

    name: str = field(default="bos", compare=False)


@dataclass(frozen=True)
class Stop:
    """What the tokenizer puts behind every text."""


@dataclass(frozen=True)
class Target:
    """Behind which the answer is written; `blank` is the white space that goes in front of it."""

    blank: str = ""


@dataclass(frozen=True)
class Mask:
    """In whose place an encoder reads its answer; `blank` is the white space that goes in front of it."""

    blank: str = ""


Segment = Anchor | Slot | Field | Start | Stop | Target | Mask


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        source: the text it was read from.
        segments: what stands in it, in order.
    """

    SOFT: ClassVar[str] = "soft"
    LABEL: ClassVar[str] = "label"
    MASK: ClassVar[str] = "mask"
    STARTS: ClassVar[tuple[str, ...]] = ("bos", "cls")
    STOP: ClassVar[str] = "sep"

    source: str
    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, source: str) -> Template:
        """Read a template.

        Raises:
            TemplateError: an unbalanced brace, a hole that is no name, a slot of no length, two places to answer, or
                something behind `{label}`.
        """
        segments: list[Segment] = []
        text = ""
        end = 0
        for match in _HOLE.finditer(source):
            text += source[end : match.start()]
            end = match.end()
            if match.group() in ("{{", "}}"):
                text += match.group()[0]
                continue
            if match.group(1) is None:
                raise _stray(source, match.start())
            hole = _hole(match.group(1), source)
            if isinstance(hole, (Field, Target, Mask)):
                bare = text.rstrip(" ")
                hole, text = replace(hole, blank=text[len(bare) :]), bare
            if text:
                segments.append(Anchor(text))
            segments.append(hole)
            text = ""
        text += source[end:]
        if text:
            segments.append(Anchor(text))
        template = cls(source, tuple(segments))
        template._check()
        return template

    def _check(self) -> None:
        where = f"template {self.source!r}"
        if self.segments.count(Start()) > 1:
            raise TemplateError("{bos} stands in it more than once", where=where, instead="Once is enough.")
        answers = [i for i, s in enumerate(self.segments) if isinstance(s, (Target, Mask))]
        if len(answers) > 1:
            raise TemplateError(
                f"{{label}} or {{mask}} stands in it {len(answers)} times",
                where=where,
                instead="One of them must stand in it, once: that is where the model answers.",
            )
        if any(isinstance(s, Target) for s in self.segments[:-1]):
            raise TemplateError(
                "something stands behind {label}",
                where=where,
                instead="The answer is written at the end: put {label} last.",
            )
        if all(isinstance(s, (Target, Mask, Start, Stop)) for s in self.segments):
            raise TemplateError(
                "there is nothing before {label}" if answers else "there is nothing in it",
                where=where,
                instead="Put a field, a {soft} slot or some text into it.",
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the row's fields, in order of first appearance."""
        return tuple(dict.fromkeys(s.name for s in self.segments if isinstance(s, Field)))

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(s for s in self.segments if isinstance(s, Slot))

    @property
    def target(self) -> Target | Mask | None:
        """Where the model answers; None where a trained head does."""
        return next((s for s in self.segments if isinstance(s, (Target, Mask))), None)

    @property
    def opening(self) -> Segment | None:
        """What the text begins with: the first segment that is neither slot nor `{bos}`; None where all are."""
        return next((s for s in self.segments if not isinstance(s, (Slot, Start))), None)

    def with_slot_in_front(self, *, behind_start: bool = False) -> Template:
        """The same template with a `{soft}` slot in front, if it has none.

        Args:
            behind_start: whether a `{bos}` that it begins with stays first.
        """
        if self.slots:
            return self
        kept = int(behind_start and self.segments[0] == Start())
        return self._of((*self.segments[:kept], Slot(), *self.segments[kept:]))

    def with_start_behind_front_slot(self) -> Template:
        """The same template with `{bos}` behind the slot it opens with, unless it says where `{bos}` stands."""
        if Start() in self.segments:
            return self
        return self._of((self.segments[0], Start(), *self.segments[1:]))

    def with_text_alone(self) -> Template:
        """The same template without slots and `{bos}`: as one of several rows in one text stands in it."""
        return self._of(tuple(s for s in self.segments if not isinstance(s, (Slot, Start))))

    def with_lengths(self, tokens: int) -> Template:
        """The same template with `tokens` virtual tokens in each slot that does not say how many."""
        return self._of(tuple(Slot(tokens) if s == Slot() else s for s in self.segments))

    @staticmethod
    def _of(segments: tuple[Segment, ...]) -> Template:
        return Template("".join(map(_written, segments)), segments)


def _written(segment: Segment) -> str:
    """The segment as `parse` reads it."""
    match segment:
        case Anchor(text):
            return text.replace("{", "{{").replace("}", "}}")
        case Slot(tokens):
            return "{soft}" if tokens is None else f"{{soft:{tokens}}}"
        case Field(name, blank):
            return f"{blank}{{{name}}}"
        case Start(name):
            return f"{{{name}}}"
        case Stop():
            return "{sep}"
        case Target(blank):
            return f"{blank}{{label}}"
        case Mask(blank):
            return f"{blank}{{mask}}"


def _stray(source: str, start: int) -> TemplateError:
    """What to tell of a brace that belongs to no hole."""
    what, instead = f"a brace stands alone at character {start + 1}", "Write {{ or }} for a literal brace"
    nested = _NESTED.match(source, start)
    if nested is None:
        instead += ", {name} for a field."
    else:
        what += f", with {nested[1]} inside it"
        instead += f"; put {nested[1]} before or behind another hole, not into it."
    return TemplateError(what, where=f"template {source!r}", instead=instead)


def _hole(content: str, source: str) -> Segment:
    name, colon, argument = content.partition(":")
    if name == Template.SOFT:
        if colon and not _LENGTH.fullmatch(argument):
            raise TemplateError(
                f"{{{content}}} has no length",
                where=f"template {source!r}",
                instead="Write {soft} or {soft:N} with N from 1 to 999999.",
            )
        return Slot(int(argument) if colon else None)
    if not content.isidentifier():
        raise TemplateError(
            f"{{{content}}} is neither a slot nor a field",
            where=f"template {source!r}",
            instead="Write {soft:N}, {name} or {label}; {{ and }} for literal braces.",
        )
    if content in Template.STARTS:
        return Start(content)
    named: dict[str, Segment] = {Template.STOP: Stop(), Template.LABEL: Target(), Template.MASK: Mask()}
    return named.get(content, Field(content))
