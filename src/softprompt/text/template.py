r"""Templates: hard text with holes, some of them learned.

    "{soft:20}Article: {text}\nTopic: {label}"

`{soft}` / `{soft:N}` is a slot of learned vectors (N of them, or as many as the method has), `{name}` a field of the
row (`{text}`, `{본문}`: any identifier), `{label}` the target, which comes last. `{bos}` is what the tokenizer puts
before every text (a beginning-of-text token, say); without it that comes first of all. `{{` and `}}` are literal
braces.
Whatever else stands there is hard text: an *anchor*.

A blank before a field or the target belongs to what follows it (`"Topic: {label}"` asks for `" sports"`), because that
is how byte-pair tokenizers write a word inside a line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
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
    """What the tokenizer puts before every text."""


@dataclass(frozen=True)
class Target:
    """What is to be predicted; `blank` is the white space that goes in front of it."""

    blank: str = ""


Segment = Anchor | Slot | Field | Start | Target


@dataclass(frozen=True)
class Template:
    """A parsed template.

    Attributes:
        source: the text it was read from.
        segments: what stands in it, in order.
    """

    SOFT: ClassVar[str] = "soft"
    LABEL: ClassVar[str] = "label"
    BOS: ClassVar[str] = "bos"

    source: str
    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, source: str) -> Template:
        """Read a template.

        Raises:
            TemplateError: an unbalanced brace, a hole that is no name, a slot of no length, no or two `{label}`, or
                something behind it.
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
            if isinstance(hole, (Field, Target)):
                bare = text.rstrip(" ")
                hole = Field(hole.name, text[len(bare) :]) if isinstance(hole, Field) else Target(text[len(bare) :])
                text = bare
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
        if self.segments.count(Start()) > 1:
            raise TemplateError(
                "{bos} stands in it more than once",
                where=f"template {self.source!r}",
                instead="Once is enough.",
            )
        targets = [i for i, s in enumerate(self.segments) if isinstance(s, Target)]
        if len(targets) != 1:
            raise TemplateError(
                f"{{label}} stands in it {len(targets)} times",
                where=f"template {self.source!r}",
                instead="It must stand in it once, at the end: that is where the model answers.",
            )
        if targets[0] != len(self.segments) - 1:
            raise TemplateError(
                "something stands behind {label}",
                where=f"template {self.source!r}",
                instead="A decoder answers at the end: put {label} last.",
            )
        if len(self.segments) == 1:
            raise TemplateError(
                "there is nothing before {label}",
                where=f"template {self.source!r}",
                instead="Put a field, a {soft} slot or some text before it.",
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the row's fields, in order of first appearance."""
        return tuple(dict.fromkeys(s.name for s in self.segments if isinstance(s, Field)))

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(s for s in self.segments if isinstance(s, Slot))

    @property
    def target(self) -> Target:
        last = self.segments[-1]
        assert isinstance(last, Target), "checked when it was read"
        return last

    @property
    def opening(self) -> Segment:
        """What the text begins with: the first segment that is neither slot nor `{bos}`."""
        return next(s for s in self.segments if not isinstance(s, (Slot, Start)))

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
        case Start():
            return "{bos}"
        case Target(blank):
            return f"{blank}{{label}}"


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


def _hole(content: str, source: str) -> Slot | Field | Start | Target:
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
    if content == Template.BOS:
        return Start()
    return Target() if content == Template.LABEL else Field(content)
