"""How many tokens were run, and how many of them were padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Self

from torch import Tensor

from softprompt.backbone.context import Stretch

ROWS, ROW_PADDING = "in rows", "padding of rows"
IN_FRONT = "virtual tokens in front, once for all rows"
BEFORE, BEFORE_PADDING = "read before rows", "padding of these"


@dataclass
class Counts:
    """Tokens that were run, or read by attention, since they were last counted.

    Attributes:
        rows: tokens run row by row.
        row_padding: padding that was run beside them.
        in_front: virtual tokens that stand in front, run once for all rows.
        before: tokens before rows that attention reads, each entry counted once.
        before_padding: padding beside these.
    """

    rows: int = 0
    row_padding: int = 0
    in_front: int = 0
    before: int = 0
    before_padding: int = 0

    def add_rows(self, mask: Tensor) -> None:
        """Count a batch by its mask, `[B, T]` bool."""
        real = int(mask.sum())
        self.rows += real
        self.row_padding += mask.numel() - real

    def add_context(self, entries: Iterable[Sequence[Stretch]]) -> None:
        """Count what stands before rows."""
        lengths = [sum(stretch.length for stretch in entry) for entry in entries]
        self.before += sum(lengths)
        self.before_padding += len(lengths) * max(lengths, default=0) - sum(lengths)

    @property
    def padding(self) -> float:
        """The share of what was run row by row that was padding."""
        return self.row_padding / max(1, self.rows + self.row_padding)

    def copy(self) -> Self:
        return type(self)(**asdict(self))

    def __add__(self, other: Self) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Self) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def each(self, steps: int) -> dict[str, float]:
        """By what they are, a step."""
        names = {
            "rows": ROWS,
            "row_padding": ROW_PADDING,
            "in_front": IN_FRONT,
            "before": BEFORE,
            "before_padding": BEFORE_PADDING,
        }
        return {said: getattr(self, name) / steps for name, said in names.items()}
