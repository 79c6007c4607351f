"""What is asked of a model: a template, the kind of answer, and the labels it may choose from if they are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from softprompt.checks import check_kind, check_whole
from softprompt.errors import LabelError, SettingsError, TemplateError
from softprompt.text.template import Template

Kind = Literal[
    "generation",
    "classification",
    "multi-label",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "feature-extraction",
]

LABELLED: frozenset[Kind] = frozenset(
    ("classification", "multi-label", "sequence-classification", "token-classification")
)
"""Kinds whose answers are labels."""

SPOKEN: frozenset[Kind] = frozenset(("generation", "classification", "multi-label"))
"""Kinds that are answered in words, at `{label}` or `{mask}`; the others read the model's states."""

OF_TOKENS: frozenset[Kind] = frozenset(("token-classification", "question-answering"))
"""Kinds that are answered inside a field of the row."""


@dataclass(frozen=True, init=False)
class Task:
    """A template with its kind of answer.

    | kind | answered | the row's answer |
    |---|---|---|
    | "generation" | in words, then the end-of-text token | text |
    | "classification" | by the most likely label word | a label |
    | "multi-label" | by every label word that is likelier than the word for none | labels, "a|b" or a list |
    | "sequence-classification" | by a trained head over one state | a label |
    | "token-classification" | by a trained head over each word's state | a label for each word of the field |
    | "question-answering" | by a trained head that finds a beginning and an end in the field | text of the field |
    | "feature-extraction" | by a vector, the mean of the states (of a decoder: the last) | what rows have in common |

    Attributes:
        template: see `softprompt.text.template`.
        kind: see the table; "classification" with labels and "generation" without unless said otherwise.
        labels: the values a row's answer may have, in order; empty where there are none.
        words: how each label is written where the model answers; the label itself unless said otherwise.
        none: the word that stands for no label, of a multi-label task; "none" unless said otherwise.
        target: the row's field that holds the answer.
        field: the row's field inside which is answered; the template's last unless said otherwise.
        max_length: the most tokens a row may take, virtual ones and the answer included; None for what the model can
            hold. Longer rows have their longest fields shortened.
    """

    template: Template
    kind: Kind
    labels: tuple[str, ...]
    words: tuple[str, ...]
    none: str
    target: str
    field: str | None
    max_length: int | None

    def __init__(
        self,
        template: str | Template,
        labels: Sequence[str] | Mapping[str, str] | None = None,
        *,
        kind: Kind | None = None,
        none: str | None = None,
        target: str = "label",
        field: str | None = None,
        max_length: int | None = None,
    ) -> None:
        """
        Args:
            template: text with `{soft}`, `{field}` and, for answers in words, `{label}` or `{mask}`.
            labels: label values, or a mapping from each value to the word that stands for it.
            kind, none, target, field, max_length: see the class.

        Raises:
            TemplateError: the template cannot be read, or does not go with the kind of answer.
            LabelError: fewer than two labels, an empty one, the same one twice, one that is no text, or labels of a
                task that has none.
            SettingsError: an unknown kind, a `max_length` below 1, or a `field` or `none` of a kind that has none.
        """
        check_kind("template", template, (str, Template), "Give some text.")
        check_kind("target", target, (str,), "Give the name of a field.")
        parsed = Template.parse(template) if isinstance(template, str) else template
        kind = kind or ("generation" if labels is None else "classification")
        if kind not in Kind.__args__:  # type: ignore[attr-defined]
            raise SettingsError(
                f"kind {kind!r} is unknown",
                where="kind",
                instead=f"Use one of {', '.join(Kind.__args__)}.",  # type: ignore[attr-defined]
            )
        names, words = _read_labels(labels, kind)
        _check_template(parsed, kind, target)
        if kind in OF_TOKENS:
            field = field or parsed.fields[-1]
            if field not in parsed.fields:
                raise TemplateError(f"it has no field {{{field}}}", where=f"template {parsed.source!r}")
        elif field is not None:
            raise SettingsError(
                f"a {kind} is not answered inside a field, but field is {field!r}",
                where="field",
                instead="Leave it out.",
            )
        if none is not None and kind != "multi-label":
            raise SettingsError(
                f"a {kind} has no word for no label, but none is {none!r}",
                where="none",
                instead="Leave it out, or use kind='multi-label'.",
            )
        none = "none" if none is None else none
        if kind == "multi-label" and (none in words or not none.strip()):
            what = f"{none!r} is a label's word and the word for none" if none.strip() else "the word for none is empty"
            raise LabelError(what, instead="Give another: none=...")
        if max_length is not None:
            check_whole("max_length", max_length)
        for name, value in (
            ("template", parsed),
            ("kind", kind),
            ("labels", names),
            ("words", words),
            ("none", none),
            ("target", target),
            ("field", field),
            ("max_length", max_length),
        ):
            object.__setattr__(self, name, value)

    @property
    def classifies(self) -> bool:
        """Whether one of the labels is the answer to a row."""
        return self.kind in ("classification", "sequence-classification")

    @property
    def outputs(self) -> int:
        """How many numbers a trained head gives for a state; 0 where there is no such head."""
        if self.kind == "question-answering":
            return 2
        return len(self.labels) if self.kind in LABELLED - SPOKEN else 0

    def with_template(self, template: Template) -> Task:
        """The same task with another template."""
        labels = dict(zip(self.labels, self.words, strict=True)) if self.labels else None
        return Task(
            template,
            labels,
            kind=self.kind,
            none=self.none if self.kind == "multi-label" else None,
            target=self.target,
            field=self.field,
            max_length=self.max_length,
        )


def _check_template(template: Template, kind: Kind, target: str) -> None:
    where = f"template {template.source!r}"
    if target in template.fields:
        raise TemplateError(
            f"field {{{target}}} is also the target",
            where=where,
            instead="The model would read its answer: take the field out, or name another target.",
        )
    if kind in SPOKEN and template.target is None:
        raise TemplateError(
            "{label} stands in it 0 times",
            where=where,
            instead="It must stand in it once, at the end (for an encoder {mask}, anywhere): there the model answers.",
        )
    if kind not in SPOKEN and template.target is not None:
        raise TemplateError(
            f"a {kind} is not answered in words",
            where=where,
            instead="Take {label} or {mask} out, or use another kind of task.",
        )
    if kind in OF_TOKENS and not template.fields:
        raise TemplateError(
            f"a {kind} is answered inside a field, and it has none", where=where, instead="Put one in: {text}."
        )


def _read_labels(
    labels: Sequence[str] | Mapping[str, str] | None, kind: Kind
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Label values and their words."""
    if isinstance(labels, str):  # a sequence, too: of its letters
        raise LabelError(f"labels is the text {labels!r}", instead='Give a list: labels=["yes", "no"].')
    if kind not in LABELLED:
        if labels is not None:
            raise LabelError(f"a {kind} has no labels", instead="Leave them out, or use another kind of task.")
        return (), ()
    names = tuple(_written(label, "label") for label in labels or ())
    words = names
    if isinstance(labels, Mapping):
        words = tuple(_written(word, "label word") for word in labels.values())
    if len(names) < 2:
        raise LabelError(
            f"a {kind} needs two labels or more, not {list(names)}",
            instead="Give them all"
            + (", or leave labels out for generation." if kind == "classification" else ": labels=[...]."),
        )
    for what, values in (("label", names), ("label word", words)):
        if len(set(values)) < len(values):
            raise LabelError(f"a {what} stands twice in {list(values)}", instead="Each must be there once.")
        if any(not value.strip() for value in values):
            raise LabelError(f"an empty {what} in {list(values)}", instead="Each must be a word.")
    return names, words


def _written(value: object, kind: str) -> str:
    """A label as rows write it: there, too, a number may stand for text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise LabelError(f"the {kind} {value!r} is {type(value).__name__}, not text", instead="Write it as text.")
    return str(value)
