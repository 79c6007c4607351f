from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from reference import case
from softprompt.run.plan import plan
from softprompt.text.examples import Example


@st.composite
def examples(draw) -> Example:
    """Hard text, example text and virtual tokens in any order."""
    tokens = draw(st.lists(st.integers(-5, 5), min_size=1, max_size=12))
    return Example(tuple(tokens), draw(st.integers(0, len(tokens))))


@given(examples())
def test_the_pieces_are_the_example(example):
    pieces = plan(example)
    assert pieces.head + pieces.shared + pieces.text + pieces.row == example.tokens
    assert pieces.row


@given(examples())
def test_unshared_everything_is_in_the_row(example):
    pieces = plan(example, share=False)
    assert pieces.row == example.tokens
    assert pieces.head == pieces.shared == pieces.text == ()


@given(examples())
def test_each_piece_depends_on_what_it_may(example):
    pieces = plan(example)
    start = len(pieces.head)
    assert all(t >= 0 for t in pieces.head + pieces.text)
    assert start <= example.field_at
    # At most one of them: the other depends on both.
    assert not (pieces.shared and pieces.text)
    if pieces.shared:
        assert start + len(pieces.shared) <= example.field_at
    if pieces.text:
        assert start == example.field_at


@given(examples())
def test_nothing_is_computed_more_often_than_it_must_be(example):
    pieces = plan(example)
    before = example.tokens[: -len(pieces.row)]
    behind_all = len(before) == len(example.tokens) - 1
    field_seen = example.field_at <= len(before)
    learned_seen = any(t < 0 for t in (*before, pieces.row[0]))
    assert behind_all or (field_seen and learned_seen)
    if pieces.shared:
        assert pieces.shared[0] < 0
    elif not pieces.text:
        assert behind_all or not pieces.head or example.field_at == len(pieces.head)


@pytest.mark.parametrize(
    ("template", "pieces"),
    [
        ("front", {"shared", "row"}),
        ("behind", {"head", "text", "row"}),
        ("middle", {"head", "shared", "row"}),
        ("two", {"shared", "row"}),
        ("headed", {"head", "text", "row"}),
        ("no-field", {"head", "shared", "row"}),
        ("no-slot", {"head", "text", "row"}),
        ("slot-alone", {"shared", "row"}),
        ("text-alone", {"text", "row"}),
    ],
)
def test_a_template_is_cut_by_the_order_of_what_stands_in_it(template, pieces):
    example = case([template], reference.backbone("llama"), rows=reference.ROWS[:1]).examples[0]
    assert {name for name, tokens in vars(plan(example)).items() if tokens} == pieces
