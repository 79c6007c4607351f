"""What is asked of a model: a template, and the answers it may choose from if they are few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softprompt.errors import LabelError, SettingsError, TemplateError
from softprompt.text.template import Template


@dataclass(frozen=True, init=False)
class Task:
    """A template with its labels.

    With labels the task is classification by verbalizer: the model chooses among label words. Without, it is
    generation: the model writes the target, then its end-of-text token.

    Attributes:
        template: see `softprompt.text.template`.
        labels: the values a row's target may have, in order; empty for generation.
        words: how each label is written where `{label}` stands; the label itself unless said otherwise.
        target: the row's field that holds the answer.
        max_length: the most tokens a row may take, virtual ones and the answer included; None for what the model can
            hold. Longer rows have their longest fields shortened.
    """

    template: Template
    labels: tuple[str, ...]
    words: tuple[str, ...]
    target: str
    max_length: int | None

    def __init__(
        self,
        template: str | Template,
        labels: Sequence[str] | Mapping[str, str] | None = None,
        *,
        target: str = "label",
        max_length: int | None = None,
    ) -> None:
        """
        Args:
            template: text with `{soft}`, `{field}` and `{label}`.
            labels: label values, or a mapping from each value to the word that stands for it.
            target: the row's field that holds the answer.
            max_length: the most tokens a row may take.

        Raises:
            TemplateError: the template cannot be read.
            LabelError: fewer than two labels, an empty one, the same one twice, or one that is no text.
            SettingsError: a `max_length` below 1.
        """
        parsed = Template.parse(template) if isinstance(template, str) else template
        if target in parsed.fields:
            raise TemplateError(
                f"field {{{target}}} is also the target",
                where=f"template {parsed.source!r}",
                instead="The model would read its answer: take the field out, or name another target.",
            )
        if isinstance(labels, str):  # a sequence, too: of its letters
            raise LabelError(f"labels is the text {labels!r}", instead='Give a list: labels=["yes", "no"].')
        names = tuple(_written(label, "label") for label in labels or ())
        words = names
        if isinstance(labels, Mapping):
            words = tuple(_written(word, "label word") for word in labels.values())
        if labels is not None and len(names) < 2:
            raise LabelError(
                f"a classification needs two labels or more, not {list(names)}",
                instead="Give them all, or leave labels out for generation.",
            )
        for kind, values in (("label", names), ("label word", words)):
            if len(set(values)) < len(values):
                raise LabelError(f"a {kind} stands twice in {list(values)}", instead="Each must be there once.")
            if any(not value.strip() for value in values):
                raise LabelError(f"an empty {kind} in {list(values)}", instead="Each must be a word.")
        if max_length is not None and max_length < 1:
            raise SettingsError(f"max_length is {max_length}", instead="Give a positive number, or None.")
        for name, value in (
            ("template", parsed),
            ("labels", names),
            ("words", words),
            ("target", target),
            ("max_length", max_length),
        ):
            object.__setattr__(self, name, value)

    @property
    def classifies(self) -> bool:
        return bool(self.labels)

    def with_template(self, template: Template) -> Task:
        """The same task with another template."""
        labels = dict(zip(self.labels, self.words, strict=True)) if self.labels else None
        return Task(template, labels, target=self.target, max_length=self.max_length)


def _written(value: object, kind: str) -> str:
    """A label as rows write it: there, too, a number may stand for text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise LabelError(f"the {kind} {value!r} is {type(value).__name__}, not text", instead="Write it as text.")
    return str(value)
