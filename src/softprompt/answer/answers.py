"""What is asked of the engine, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Request = tuple[str, Mapping[str, Any]]
"""The name of a prompt and the row it is to answer."""


@dataclass(frozen=True)
class Classification:
    """The answer to a classification.

    Attributes:
        label: the most probable label, or what an ensemble voted for.
        probabilities: of each label among the task's labels; they add up to one. Of an ensemble, the means.
        cut: how many tokens of the row's fields were cut away, because it was too long.
    """

    label: str
    probabilities: Mapping[str, float]
    cut: int = 0


@dataclass(frozen=True)
class Generation:
    """A generated answer.

    Attributes:
        text: what was written, without end-of-text token.
        tokens: how many tokens that took, the end-of-text token included.
        finished: whether the model ended it; False where `max_new_tokens` did.
        cut: how many tokens of the row's fields were cut away, because it was too long.
    """

    text: str
    tokens: int
    finished: bool
    cut: int = 0


@dataclass(frozen=True)
class Labelling:
    """The answer to a multi-label classification.

    Attributes:
        labels: those that apply, in the task's order.
        probabilities: of each label, that it applies.
        cut: as in `Classification`.
    """

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]
    cut: int = 0


@dataclass(frozen=True)
class Tagging:
    """The answer to a token classification.

    Attributes:
        labels: the most probable label of each word of the field; None for words that were cut away, and
            for those that the tokenizer makes nothing of.
        probabilities: of these labels, likewise.
        cut: as in `Classification`.
    """

    labels: tuple[str | None, ...]
    probabilities: tuple[float | None, ...]
    cut: int = 0


@dataclass(frozen=True)
class Span:
    """The answer to a question.

    Attributes:
        text: what of the field answers it.
        start, end: its first character in the field, and the one behind its last.
        probability: of this among all parts of the field.
        cut: as in `Classification`.
    """

    text: str
    start: int
    end: int
    probability: float
    cut: int = 0


@dataclass(frozen=True)
class Embedding:
    """The vector of a row.

    Attributes:
        vector: as long as the model's states; its cosine with another's says how much the two rows have in common.
        cut: as in `Classification`.
    """

    vector: tuple[float, ...]
    cut: int = 0


Answer = Classification | Labelling | Generation | Tagging | Span | Embedding
