from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from softprompt.data import Row
from softprompt.errors import DataError, LabelError, LengthError
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.task import Task

TOKENIZER = tiny.tokenizer()
TEMPLATE = "{soft:3}Article: {text}\nTopic: {label}"
LABELS = ["sports", "business"]
ROW = {"text": "the team won", "label": "sports"}


def maker(template: str = TEMPLATE, labels=None, *, positions: int | None = None, **options) -> ExampleMaker:
    return ExampleMaker(Task(template, labels, **options), TOKENIZER, positions)


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def text(tokens) -> str:
    """What stands in an example, a virtual token written as `[v]`."""
    return "".join(f"[{-1 - token}]" if token < 0 else TOKENIZER.decode([token]) for token in tokens)


# What stands in an example


def test_everything_stands_in_the_order_of_the_template():
    example = maker("{soft:2}Article: {text}{soft:1} of {other}\nTopic: {label}")({**ROW, "other": "the market"})
    assert text(example.tokens) == "[0][1]Article: the team won[2] of the market\nTopic:"
    assert text(example.target) == " sports</s>"
    assert (example.label, example.cut) == (None, 0)


def test_virtual_tokens_are_counted_over_all_slots():
    assert maker("{soft:2}a{soft:5}{label}").virtual == 7
    assert maker("{text}{label}").virtual == 0


@pytest.mark.parametrize(
    ("template", "before"),
    [
        (TEMPLATE, "[0][1][2]Article:"),
        ("{text}{soft:2}{label}", ""),
        ("a {soft:1}{text} b {text}{label}", "a [0]"),
        ("{soft:2}no field: {label}", "[0][1]no field:"),
    ],
)
def test_it_is_known_where_the_row_begins_to_matter(template, before):
    example = maker(template)(ROW)
    assert text(example.tokens[: example.field_at]) == before
    assert example.tokens[: example.field_at] == maker(template)({**ROW, "text": "x"}).tokens[: example.field_at]


def test_a_class_is_answered_by_its_first_token_where_that_is_enough():
    made = maker(labels=LABELS)
    example = made({**ROW, "label": "business"})
    assert example.label == 1
    assert list(example.target) == ids(" business")[:1]


def test_a_class_is_answered_by_its_whole_word_elsewhere():
    made = maker(labels=["the match", "the market"])
    assert text(made({**ROW, "label": "the market"}).target) == " the market"


def test_numbers_are_written_as_text():
    example = maker("{text} {n} {label}", {0: "bad", 1: "good"})({"text": 12, "n": 0.5, "label": 1})
    assert text(example.tokens) == "12 0.5"
    assert example.label == 1


def test_an_empty_text_is_a_text():
    assert text(maker("Article:{text}\nTopic: {label}")({"text": "", "label": "x"}).tokens) == "Article:\nTopic:"


def test_fields_that_the_template_does_not_name_are_left_alone():
    assert maker()({**ROW, "other": None}) == maker()(ROW)


def test_without_an_answer_the_row_needs_none():
    example = maker(labels=LABELS)({"text": "the team won"}, answered=False)
    assert (example.target, example.label) == ((), None)
    assert example.tokens == maker(labels=LABELS)(ROW).tokens


def test_an_answer_is_decoded_without_the_template_blank():
    for template in ("{text} Topic: {label}", "{text} Topic:{label}"):
        made = maker(template)
        for answer in ("sports", " two  words", "naïve 서울", ""):
            assert made.decode(made({**ROW, "label": answer}).target) == answer


def test_a_filled_template_is_the_pieces_of_its_example():
    made, row = maker(), {**ROW, "text": "the team won the match"}
    pieces, cut = made.fill(row, None)
    assert [is_field for is_field, _ in pieces] == [False, False, False, True, False]
    assert tuple(token for _, piece in pieces for token in piece) == made(row).tokens
    assert cut == 0
    shorter, cut = made.fill(row, 2)
    assert (len(shorter[3][1]), cut) == (2, len(pieces[3][1]) - 2)


def test_a_label_is_known_without_its_row_being_read():
    assert maker(labels=LABELS).label({"label": "business"}) == 1
    assert maker().label({"label": "business"}) is None
    with pytest.raises(LabelError, match="row 3: unknown label 'tech'"):
        maker(labels=LABELS).label({"label": "tech"}, "row 3")


@pytest.mark.parametrize("kind", ["classification", "sequence-classification", "multi-label"])
def test_a_class_number_is_the_label_that_it_counts(kind):
    task = Task("{text}" if kind.startswith("seq") else "{text}: {label}", LABELS, kind=kind)
    made = ExampleMaker(task, tiny.tokenizer())
    for number, label in enumerate(LABELS):
        assert made({**ROW, "label": number}) == made({**ROW, "label": label})
        if kind == "multi-label":
            assert made({**ROW, "label": [number]}) == made({**ROW, "label": [label]})
        elif kind == "classification":
            assert made.label({**ROW, "label": number}) == number


# Rows that cannot be used


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"label": "sports"}, DataError, "field 'text' is missing. The row has 'label'."),
        ({}, DataError, "is missing. The row has no field."),
        ({"text": "a"}, DataError, "field 'label' is missing"),
        ({"text": None, "label": "sports"}, DataError, "field 'text' is null, not text. Give text or a number"),
        ({"text": "a", "label": None}, DataError, "field 'label' is null, not text. Give text or a number"),
        ({"text": ["a"], "label": "sports"}, DataError, "field 'text' is list, not text"),
        ({"text": True, "label": "sports"}, DataError, "field 'text' is bool, not text"),
        ({"text": b"a", "label": "sports"}, DataError, "field 'text' is bytes, not text"),
        ({"text": "cut \ud83d", "label": "sports"}, DataError, "field 'text' holds half a character"),
        ({"text": math.nan, "label": "sports"}, DataError, "field 'text' is nan, as tables write what is missing"),
        ({"text": "a", "label": "tech"}, LabelError, "unknown label 'tech'. The task's labels are sports, business."),
        ({"text": "a", "label": 2}, LabelError, "unknown label '2'. The task's labels are sports, business."),
        ({"text": "a", "label": 0.0}, LabelError, "unknown label '0.0'"),
        ("text label", DataError, "the row is str, not fields by name"),
        (["a", "sports"], DataError, "the row is list, not fields by name"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_number(row, error, message):
    with pytest.raises(error) as refused:
        maker(labels=LABELS).all([ROW, ROW, row])
    assert str(refused.value).startswith("row 3: ")
    assert message in str(refused.value)


def test_a_row_that_knows_its_origin_is_named_by_it():
    for ask in (lambda row: maker()(row), lambda row: maker().all([ROW, row])):
        with pytest.raises(DataError, match=r"^news.jsonl, line 9: field 'text' is missing"):
            ask(Row({"label": "x"}, "news.jsonl, line 9"))


def test_the_caller_may_name_the_row():
    with pytest.raises(DataError, match=r"^request 4: field 'text'"):
        maker()({}, answered=False, where="request 4")


def test_no_row_at_all_is_an_error():
    with pytest.raises(DataError, match="there is no row"):
        maker().all([])


def test_a_row_without_a_single_token_is_an_error():
    with pytest.raises(DataError, match="row 1: the row is empty and so is the template"):
        maker("{text}{label}").all([{"text": "", "label": "x"}])


def test_an_answer_without_a_single_token_is_an_error():
    endless = tiny.tokenizer()
    endless.eos_token = None
    with pytest.raises(DataError, match="row 1: the answer 'label' is empty"):
        ExampleMaker(Task("{text}{label}"), endless).all([{"text": "a", "label": ""}])


# Rows that are too long

LONG = "the team won the match, " * 30


def size(example: Example) -> int:
    return len(example.tokens) + len(example.target)


def test_only_the_field_is_shortened_at_its_end():
    example = maker(max_length=40)({**ROW, "text": LONG})
    written = text(example.tokens)
    assert size(example) == 40
    assert written.startswith("[0][1][2]Article: the team won")
    assert written.endswith("\nTopic:")
    assert text(example.target) == " sports</s>"
    assert example.cut == size(maker()({**ROW, "text": LONG})) - 40


def test_what_fits_exactly_is_not_cut():
    whole = maker()(ROW)
    assert maker(max_length=size(whole))(ROW) == whole
    assert maker(max_length=size(whole) - 1)(ROW).cut == 1


def test_how_many_rows_were_cut_is_easy_to_tell():
    examples = maker(max_length=40).all([ROW, {**ROW, "text": LONG}, ROW, {**ROW, "text": LONG}])
    assert sum(e.cut > 0 for e in examples) == 2


def test_a_text_longer_than_the_model_is_cut_without_a_warning(byte_level, caplog):
    made = ExampleMaker(Task("{soft:3}{text}\nTopic: {label}", LABELS), byte_level, 100)
    example = made({"text": "word " * 20_000, "label": "sports"})
    assert size(example) == 100
    assert example.cut == pytest.approx(20_000, rel=0.01)
    assert not caplog.records


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(10, 100))
def test_the_longest_fields_give_first_and_evenly(lengths, limit):
    fields = {f"f{i}": "x" * n for i, n in enumerate(lengths)}
    made = maker("".join(f"{{{name}}}|" for name in fields) + "{soft:2}{label}", {0: "a", 1: "b"}, max_length=limit)
    example = made({**fields, "label": 0})
    sizes = [len(part) for part in text(example.tokens).removesuffix("[0][1]").split("|")[:-1]]
    assert example.cut == sum(lengths) - sum(sizes)
    # All of the room is used, and what was cut is down to one level that nothing stands above.
    assert size(example) == min(limit, sum(lengths) + len(lengths) + 3)
    assert all(s == n or s >= max(sizes) - 1 for s, n in zip(sizes, lengths, strict=True))


def test_a_field_that_stands_twice_is_cut_alike_in_both_places():
    example = maker("{text}|{text}|{label}", LABELS, max_length=23)({**ROW, "text": "x" * 50})
    assert text(example.tokens) == "x" * 10 + "|" + "x" * 10 + "|"


def test_the_tighter_of_the_two_limits_counts():
    for limit, positions, expected in [(30, 128, 30), (500, 128, 128), (None, 64, 64), (30, None, 30)]:
        made = maker(max_length=limit, positions=positions)
        assert made.limit == expected
        assert size(made({**ROW, "text": LONG})) == expected
    assert maker().limit is None
    assert maker()({**ROW, "text": LONG}).cut == 0


def test_every_label_leaves_the_text_the_same_room():
    # Were the room measured by the row's own label, how much is cut would give it away.
    made = maker("{text} {label}", {"a": "the match", "b": "the market fell, twice"}, max_length=30)
    first, second = (made({"text": LONG, "label": label}) for label in "ab")
    assert first.tokens == second.tokens
    assert max(size(first), size(second)) == 30
    assert made({"text": LONG}, answered=False).tokens == made({"text": LONG, "label": "b"}).tokens


def test_room_is_kept_for_as_much_as_will_be_generated():
    made = maker(max_length=60)
    for room in (1, 8, 32):
        example = made({"text": LONG}, answered=False, room_for=room)
        assert len(example.tokens) == 60 - room
        assert text(example.tokens).endswith("\nTopic:")
    assert len(made({"text": LONG}, answered=False).tokens) == 59


def test_room_for_generation_counts_only_where_something_is_generated():
    assert maker(max_length=60)({**ROW, "text": LONG}, room_for=20) == maker(max_length=60)({**ROW, "text": LONG})
    classes = maker(labels=LABELS, max_length=60)
    assert classes({"text": LONG}, answered=False, room_for=20) == classes({"text": LONG}, answered=False)


def test_slots_and_hard_text_that_are_too_long_alone_are_refused_at_once():
    fixed = len(maker().all([{**ROW, "text": ""}])[0].tokens)
    for options in ({"max_length": fixed}, {"positions": fixed}):
        with pytest.raises(LengthError, match=f"take {fixed - 1} tokens and the answer 1") as refused:
            # One token less than with the blank of an empty field.
            maker(**{name: value - 1 for name, value in options.items()})
        assert refused.value.where is None
        assert "Shorten the template, its slots" in refused.value.instead
    assert maker(max_length=fixed)({"text": LONG}, answered=False).tokens


def test_a_slot_longer_than_the_model_is_refused():
    with pytest.raises(LengthError, match="but only 128 are allowed"):
        maker("{soft:500}{text}{label}", positions=128)


def test_an_answer_that_is_too_long_is_named_by_its_row_and_never_cut():
    with pytest.raises(LengthError, match=r"^row 2: slots and hard text take .* and the answer"):
        maker(max_length=30).all([ROW, {**ROW, "label": LONG}])


def test_room_for_more_than_there_is_is_refused():
    with pytest.raises(LengthError, match=r"^request 1: .* the answer 1000, but only 60 are allowed"):
        maker(max_length=60)(ROW, answered=False, where="request 1", room_for=1000)
