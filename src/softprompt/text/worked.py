"""Worked examples: rows with their answers, as they stand in front of what is asked. What they are, and of what kind
each of their tokens is; `softprompt.text.choose` says which rows, `softprompt.text.write` turns them into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

TokenKind = Literal["format", "input", "label", "separator"]
"""Hard text of the template; text of a field; the answer; what stands behind every worked example."""

KINDS: tuple[TokenKind, ...] = get_args(TokenKind)

Order = Literal["drawn", "rounds", "rows"]
"""As they were drawn; label after label in the task's order, and again; as they stand among the rows."""

ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True)
class Recipe:
    """What a method's worked examples are to be.

    Attributes:
        examples: how many.
        order: see `Order`.
        separator: the text behind each.
        example_length: the most tokens that the fields of one may take; None for all.
    """

    examples: int
    order: Order
    separator: str
    example_length: int | None


@dataclass(frozen=True)
class WorkedExamples:
    """Worked examples as one run of P tokens.

    Attributes:
        tokens: `[P]` token ids.
        kinds: `[P]`, of what kind each is.
        answers: `[P]`; the number, from 0, of the worked example whose answer a token is, where the model is asked
            for it as for that of a row; -1 elsewhere.
        examples: how many there are.
        rows: the numbers, from 1, of the rows they were made of; None where these are not known any more.
    """

    tokens: tuple[int, ...]
    kinds: tuple[TokenKind, ...]
    answers: tuple[int, ...]
    examples: int
    rows: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """P."""
        return len(self.tokens)
