"""Which rows become worked examples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from softprompt.errors import DataError
from softprompt.text.worked import Recipe


def choose(labels: Sequence[int | None], recipe: Recipe, seed: int) -> list[int]:
    """Numbers, from 0, of the rows that become worked examples, in the order in which they stand.

    With labels the choice is balanced: labels take turns, in an order that is drawn (a frequent one comes up sooner),
    and each gives one of its rows that were not taken yet; one that has no more is passed over. So where there are
    fewer worked examples than labels, which labels are shown is drawn, too. Without labels the rows are just drawn.
    The seed decides alone.

    Args:
        labels: of each row, its label's position among the labels; None, of all rows, for generation.

    Raises:
        DataError: there are fewer rows than worked examples.
    """
    if len(labels) < recipe.examples:
        raise DataError(
            f"{recipe.examples} worked examples are asked for, but there are {len(labels)} rows to take them from",
            where="examples",
            instead="Give more rows, or fewer examples.",
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(labels), generator=generator).tolist()
    rows_of: dict[int | None, list[int]] = {}
    for row in drawn:
        rows_of.setdefault(labels[row], []).append(row)
    rounds = max(map(len, rows_of.values()))
    turns = (rows[turn] for turn in range(rounds) for rows in rows_of.values() if turn < len(rows))
    chosen = set(islice(turns, recipe.examples))
    if recipe.order == "rows":
        return sorted(chosen)
    if recipe.order == "rounds":
        turn = {row: number for rows in rows_of.values() for number, row in enumerate(rows)}
        return sorted(chosen, key=lambda row: (turn[row], labels[row] or 0))
    return [row for row in drawn if row in chosen]
