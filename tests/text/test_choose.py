from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.errors import DataError
from softprompt.text.choose import choose
from softprompt.text.worked import ORDERS, Recipe

LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 0]


def chosen(labels, examples: int, seed: int = 0, order: str = "drawn") -> list[int]:
    return choose(labels, Recipe(examples, order, "\n\n", None), seed)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.integers(1, 30),
    st.integers(0, 99),
    st.sampled_from(ORDERS),
)
@settings(deadline=None)
def test_labels_are_shown_as_evenly_as_their_rows_allow(labels, examples, seed, order):
    examples = min(examples, len(labels))
    rows = chosen(labels, examples, seed, order)
    assert len(set(rows)) == len(rows) == examples
    shown, there = Counter(labels[row] for row in rows), Counter(labels)
    most = max(shown.values())
    # A label is shown less often than another, by more than one, only where it has no more rows.
    assert all(shown[label] >= min(there[label], most - 1) for label in there)


@pytest.mark.parametrize("order", ORDERS)
def test_the_seed_decides_alone(order):
    assert chosen(LABELS, 6, 1, order) == chosen(list(LABELS), 6, 1, order)
    assert len({tuple(chosen(LABELS, 6, seed, order)) for seed in range(20)}) > 5


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_changes_which_rows_are_chosen_in_nothing(order):
    assert sorted(chosen(LABELS, 5, 3, order)) == sorted(chosen(LABELS, 5, 3))


def test_orders_are_what_they_say():
    assert chosen(LABELS, 6, 4, "rows") == sorted(chosen(LABELS, 6, 4))
    assert [LABELS[row] for row in chosen(LABELS, 8, 4, "rounds")] == [0, 1, 2, 0, 1, 2, 0, 1]
    drawn = {tuple(LABELS[row] for row in chosen(LABELS, 3, seed)) for seed in range(40)}
    assert len(drawn) == 6, "every order of three labels comes up"


def test_fewer_examples_than_labels_show_some_of_them():
    shown = [{LABELS[row] for row in chosen(LABELS, 2, seed)} for seed in range(30)]
    assert {len(s) for s in shown} == {2}
    assert set().union(*shown) == {0, 1, 2}


def test_without_labels_rows_are_just_drawn():
    rows = chosen([None] * 9, 4)
    assert len(set(rows)) == 4
    assert rows != chosen([None] * 9, 4, seed=1)
    assert chosen([None] * 9, 4, order="rounds") == rows
    assert chosen([None] * 9, 4, order="rows") == sorted(rows)


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match=r"examples: 4 worked examples .* there are 3 rows.*Give more rows, or fewer"):
        chosen([0, 1, 0], 4)
