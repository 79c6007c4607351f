"""The conformance grid: every cell is what docs/grid.md says, green or refused by name."""

from __future__ import annotations

import pytest

import grid


@pytest.mark.parametrize("column", grid.COLUMNS)
@pytest.mark.parametrize("kind", grid.KINDS)
@pytest.mark.parametrize("family", grid.FAMILIES)
def test_a_cell_is_what_the_table_says(family, kind, column):
    assert grid.cell(column, family, kind) == grid.written()[column, family, kind], (
        "if this is meant, write the table anew: make grid"
    )


def test_the_table_has_every_cell_and_no_other():
    cells = {(c, f, k) for c in grid.COLUMNS for f in grid.FAMILIES for k in grid.KINDS}
    assert set(grid.written()) == cells


def test_most_of_the_table_is_green():
    said = list(grid.written().values())
    assert said.count(grid.GREEN) > 0.7 * len(said)
