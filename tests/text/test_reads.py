"""Answers inside a field: labels of words, and spans."""

from __future__ import annotations

from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from softprompt.errors import DataError, LabelError, LengthError
from softprompt.text.answers import BEGINS, ENDS
from softprompt.text.batch import IGNORED
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task

KINDS = {"decoder": tiny.tokenizer(), "encoder": tiny.tokenizer("encoder"), "encoder-decoder": tiny.tokenizer("t5")}
LABELS = ["A", "B"]
TAGS = Task("{soft:2}Article: {text}", LABELS, kind="token-classification")
SPANS = Task("{soft:2}Article: {text}", kind="question-answering")

every_kind = pytest.mark.parametrize("kind", KINDS)


def maker(task: Task, kind: str = "encoder", tokenizer=None) -> ExampleMaker:
    return ExampleMaker(task, tokenizer if tokenizer is not None else KINDS[kind], 512, kind)


def tokens_at(example, tokenizer) -> list[str]:
    return [tokenizer.decode([example.tokens[i]]) for i in example.reads]


# A label for each word


@every_kind
@pytest.mark.parametrize(
    "row",
    [
        {"text": "the market unfolds", "label": "A B A"},
        {"text": ["the", "market", "unfolds"], "label": ["A", "B", "A"]},
        {"text": "  the\n market \t unfolds ", "label": ("A", "B", "A")},
    ],
)
def test_a_word_is_read_once_at_its_first_token_or_a_decoders_last(kind, row):
    own = KINDS[kind]
    example = maker(TAGS, kind)(row)
    pieces = [own.tokenize(" " + word) for word in ("the", "market", "unfolds")]
    assert len(pieces[2]) > 1
    wanted = [own.convert_tokens_to_string([p[-1] if kind == "decoder" else p[0]]) for p in pieces]
    assert tokens_at(example, own) == wanted
    assert (example.target, example.words, example.spans, example.label) == ((0, 1, 0), (0, 1, 2), (), None)
    assert example.tokens == maker(TAGS, kind)({"text": "the market unfolds"}, answered=False).tokens
    assert maker(TAGS, kind)(row, answered=False).reads == example.reads


@every_kind
def test_words_that_were_cut_away_are_not_read(kind):
    words, labels = ["the", "unfolds"] * 20, LABELS * 20
    for limit in range(14, 30):
        task = Task("{soft:2}Article: {text}|", LABELS, kind="token-classification", max_length=limit)
        example = maker(task, kind)({"text": words, "label": labels})
        assert len(example.tokens) == limit
        assert example.cut > 0
        assert example.words == tuple(range(len(example.reads)))
        assert example.target == tuple(i % 2 for i in example.words)
        assert example.target + example.missed == (0, 1) * 20
        # What is left of a word that was cut in two is no word.
        whole = maker(TAGS, kind)({"text": words}, answered=False)
        assert example.reads == whole.reads[: len(example.reads)]
        assert 1 <= len(example.reads) < 40


@pytest.mark.parametrize("words", [["", "team", "won"], ["team", "\u200b", "won"], ["team", "won", "\x00"]])
@pytest.mark.parametrize("answered", [False, True])
def test_a_word_of_which_the_tokenizer_makes_nothing_takes_no_label_from_its_neighbours(minilm, words, answered):
    labels = ["A" if word in ("team", "won") else "B" for word in words]
    example = maker(TAGS, tokenizer=minilm.tokenizer)({"text": words, "label": labels}, answered=answered)
    assert tokens_at(example, minilm.tokenizer) == ["team", "won"]
    assert [words[i] for i in example.words] == ["team", "won"]
    assert example.target == ((0, 0) if answered else ())
    assert example.missed == ((1,) if answered else ())


def test_a_word_with_blanks_in_a_list_is_one_word():
    example = maker(TAGS)({"text": ["the team", "won"], "label": ["A", "B"]})
    assert tokens_at(example, KINDS["encoder"]) == [" the", " won"]


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (
            {"text": "a b c", "label": "A B"},
            DataError,
            "row 1: field 'text' has 3 words, but 'label' 2 labels.*one length",
        ),
        ({"text": ["a b"], "label": ["A", "B"]}, DataError, "field 'text' has 1 words, but 'label' 2 labels"),
        ({"text": "a b", "label": "A C"}, LabelError, "row 1: unknown label 'C'. The task's labels are A, B"),
        ({"text": "a b", "label": ["A", None]}, DataError, "field 'label' is null, not text. Give text or a number"),
        ({"text": ["a", None], "label": "A B"}, DataError, "field 'text' is null, not text. Give text or a number"),
        ({"text": "a b"}, DataError, "field 'label' is missing"),
        ({"text": "", "label": ""}, DataError, "row 1: nothing of field 'text' is left to answer in"),
        ({"text": [], "label": []}, DataError, "nothing of field 'text' is left"),
    ],
)
def test_words_and_labels_that_do_not_go_together_are_named(row, error, message):
    with pytest.raises(error, match=message):
        maker(TAGS).all([row])


def test_class_numbers_are_labels_of_words():
    words = ["the", "team", "won"]
    numbered = maker(TAGS).all([{"text": words, "label": [0, 1, 0]}])
    assert numbered == maker(TAGS).all([{"text": words, "label": ["A", "B", "A"]}])
    assert numbered == maker(TAGS).all([{"text": words, "label": (0, "B", 0)}])
    with pytest.raises(LabelError, match=r"row 1: unknown label '-100'. The task's labels are A, B. .*from 0 to 1\."):
        maker(TAGS).all([{"text": words, "label": [0, 1, -100]}])
    with pytest.raises(LabelError, match=r"unknown label '0'.*from 0 to 1: a number, not text"):
        maker(TAGS).all([{"text": words, "label": "0 1 0"}])


@every_kind
@pytest.mark.parametrize("template", ["{soft:2}Article: {text}|", "{note}{soft:2}Article: {text}|"])
@pytest.mark.parametrize("kind_of_task", ["token-classification", "question-answering"])
def test_where_no_room_is_left_for_the_field_it_is_said_how_much_is_missing(kind, template, kind_of_task):
    row = {"text": "unfolding market", "note": "the match, the team", "label": "A B"}
    if kind_of_task == "question-answering":
        row["label"] = "market"
    labels = LABELS if kind_of_task == "token-classification" else None
    limits = range(1, 40)
    outcomes = {}
    for limit in limits:
        task = Task(template, labels, kind=kind_of_task, max_length=limit)
        try:
            outcomes[limit] = maker(task, kind).all([row])
        except LengthError as refused:
            outcomes[limit] = str(refused)
    asked = {n: said for n, said in outcomes.items() if "nothing of field 'text'" in str(said)}
    enough = min(n for n, said in outcomes.items() if isinstance(said, list))
    assert asked, "a limit that leaves room for slots and hard text alone"
    for limit, said in asked.items():
        assert f"row 1: nothing of field 'text' is left to answer in: max_length is {limit}, and slots" in said
        assert f"Raise max_length by {enough - limit} or more, or shorten the template" in said
        assert ("or the other fields" in said) == ("{note}" in template)


def test_where_the_model_itself_has_no_room_left_max_length_is_not_advised():
    row = {"text": "won", "label": "A"}
    for bound, named in ((None, "the positions of the model are"), (11, "max_length is")):
        task = Task("{soft:10}: {text}", LABELS, kind="token-classification", max_length=bound)
        made = ExampleMaker(task, KINDS["decoder"], 11, "decoder")
        with pytest.raises(LengthError, match=rf"{named} 11, .* 11 of them. Shorten the template or its slots by 1 "):
            made.all([row])


def test_names_of_special_tokens_are_only_text_in_a_row():
    for kind, own in KINDS.items():
        example = maker(TAGS, kind)({"text": "</s> won <mask>", "label": "A B A"})
        inside = example.tokens[example.field_at :]
        inside = inside if kind == "decoder" else inside[:-1]
        assert not set(own.all_special_ids) & set(inside)
        assert len(example.reads) == 3


def test_the_field_that_is_named_is_the_one_that_is_read():
    rows = {"text": "the team", "other": "won", "label": "A B"}
    task = Task("{text} {other}", LABELS, kind="token-classification", field="text")
    assert tokens_at(maker(task)(rows), KINDS["encoder"]) == ["the", " team"]
    with pytest.raises(DataError, match="field 'other' has 1 words"):
        maker(Task("{text} {other}", LABELS, kind="token-classification"))(rows)


@pytest.mark.parametrize("kind", ["token-classification", "question-answering"])
def test_answers_that_go_with_another_field_are_told_to_name_it(kind):
    labels = LABELS if kind == "token-classification" else None
    row = {"text": "the team won", "note": "a short note", "x": "x", "label": "A B A" if labels else "team"}
    with pytest.raises(DataError, match=r"row 1: .*It goes with {text}: .*Task\(..., field='text'\) \(--field text\)."):
        maker(Task("{text}. {x}", labels, kind=kind)).all([row])
    assert maker(Task("{text}. {x}", labels, kind=kind, field="text")).all([row])[0].reads
    # Where it goes with none of them, there is none to name.
    other = Task("{x}. {note}", labels, kind=kind)
    row["label"] = "A B A B" if labels else "team"
    with pytest.raises(DataError, match=r"row 1: .*(Give both as lists|Give text that stands there)"):
        maker(other).all([row])


# Spans


def answer_of(example, content: str) -> str:
    """The text between the token that begins the answer and the one that ends it."""
    (first,) = [i for i, t in enumerate(example.target) if t & BEGINS]
    (last,) = [i for i, t in enumerate(example.target) if t & ENDS]
    return content[example.spans[first][0] : example.spans[last][1]]


CONTENTS = [
    ("the team won the match", "won the"),
    ("the team won", "the team won"),
    ("  two  blanks\nand lines \n", "blanks\nand"),
    ("naïve café, 서울의 팀이 이겼다!", "서울의"),
    ("서울의 팀이 이겼다", "팀이"),
    ("a </s> b <mask> [SEP] c", "<mask> [SEP]"),
    ("unfolding", "fold"),
]


@every_kind
@pytest.mark.parametrize(("content", "answer"), CONTENTS)
@pytest.mark.parametrize("template", ["{text}", "{soft:2}Article:  {text}\nx"])
def test_the_tokens_of_an_answer_are_marked(kind, content, answer, template):
    assert_marked(maker(Task(template, kind="question-answering"), kind), content, answer)


@every_kind
def test_names_of_special_tokens_are_only_text_in_a_text_that_is_answered_in(kind):
    own = KINDS[kind]
    example = maker(Task("Article: {text}.", kind="question-answering"), kind)({"text": "a</s><mask>", "label": "a"})
    assert not set(own.all_special_ids) & {example.tokens[i] for i in example.reads}
    assert len(example.reads) > 3


def assert_marked(made: ExampleMaker, content: str, answer: str) -> None:
    example = made({"text": content, "label": answer})
    assert len(example.reads) == len(example.spans) == len(example.target)
    found = answer_of(example, content)
    assert answer in found
    # No token more than it takes.
    first = next(i for i, t in enumerate(example.target) if t & BEGINS)
    last = next(i for i, t in enumerate(example.target) if t & ENDS)
    start = content.index(answer)
    assert example.spans[first][0] <= start < example.spans[first][1]
    assert example.spans[last][0] < start + len(answer) <= example.spans[last][1]
    assert sum(example.target) == BEGINS + ENDS


@pytest.mark.parametrize(("content", "answer"), CONTENTS)
@pytest.mark.parametrize("template", ["{text}", "{soft:2}Article:  {text}\nx"])
def test_offsets_of_real_tokenizers(minilm, byte_level, content, answer, template):
    task = Task(template, kind="question-answering")
    assert_marked(maker(task, "encoder", minilm.tokenizer), content, answer)
    assert_marked(maker(task, "decoder", byte_level), content, answer)


@pytest.mark.parametrize("template", ["{text}", "Article: {text}\nx", "{soft:2}{text}", "Article:{text}"])
def test_offsets_where_a_blank_is_put_before_every_text(metaspace, template):
    task = Task(template, kind="question-answering")
    for content, answer in (
        ("the team won the match", "won"),
        ("the team won", "the"),
        ("the won", "t"),
        ("market: 서울 x", "서울"),
    ):
        assert_marked(maker(task, "decoder", metaspace), content, answer)


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("the won,서울é\n "), min_size=1, max_size=30), st.data())
def test_every_part_of_a_text_is_found(content, data):
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)))
    made = maker(SPANS, data.draw(st.sampled_from(list(KINDS))))
    example = made({"text": content, "label": {"text": content[start:end], "start": start}})
    first, last = (next(i for i, t in enumerate(example.target) if t & mark) for mark in (BEGINS, ENDS))
    assert example.spans[first][0] <= start < example.spans[first][1]
    assert example.spans[last][0] < end <= example.spans[last][1]


def test_where_an_answer_stands_may_be_said():
    content = "won, and won again"
    first = maker(SPANS)({"text": content, "label": "won"})
    assert first == maker(SPANS)({"text": content, "label": {"text": "won"}})
    assert first == maker(SPANS)({"text": content, "label": {"text": "won", "start": 0}})
    second = maker(SPANS)({"text": content, "label": {"text": "won", "start": 9}})
    assert second == maker(SPANS)({"text": content, "label": {"text": ["won"], "answer_start": [9]}})  # as in SQuAD
    assert second.tokens == first.tokens
    assert first.target.index(BEGINS + ENDS) < second.target.index(BEGINS + ENDS)


@every_kind
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_answer_in_another_unicode_form_is_found_where_it_stands(kind, forms):
    content, answer = normalize(forms[0], "한국의 서울은 café 도시다"), normalize(forms[1], "서울은 café")
    assert answer not in content
    as_written = normalize(forms[0], answer)
    assert_marked(maker(SPANS, kind), content, as_written)
    for label in (answer, {"text": answer, "start": content.index(as_written)}):
        found = maker(SPANS, kind)({"text": content, "label": label})
        assert found == maker(SPANS, kind)({"text": content, "label": as_written})
    with pytest.raises(DataError, match="does not stand in field 'text' at character 1"):
        maker(SPANS, kind)({"text": content, "label": {"text": answer, "start": 1}})


def test_a_number_is_an_answer():
    assert answer_of(maker(SPANS)({"text": "in 1999 it fell", "label": 1999}), "in 1999 it fell").strip() == "1999"


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("fell", "row 1: the answer 'fell' does not stand in field 'text'. Give text that stands there, or"),
        ("", r"row 1: the question has no answer, field 'label' holds ''. A question-answering .*leave such rows out"),
        ({"text": "", "start": 0}, "the question has no answer"),
        ({"text": [], "answer_start": []}, r"no answer, field 'label' holds {'text': \[\], .* begin every 'text' with"),
        ([], "the question has no answer"),
        ({"text": "won", "start": 3}, "the answer 'won' does not stand in field 'text' at character 3"),
        ({"text": "won", "start": -3}, "the answer 'won' does not stand in field 'text'"),
        ({"text": "won", "start": 99}, "does not stand in field 'text' at character 99"),
        ({"text": "won", "start": "9"}, r"field 'label' holds {'text': 'won', 'start': '9'}. Give text that stands"),
        ({"text": "won", "start": 9.0}, "field 'label' holds"),
        ({"text": "won", "start": True}, "field 'label' holds"),
        ({"start": 3}, r"field 'label' holds {'start': 3}"),
        (["won"], r"field 'label' holds \['won'\]"),
        (None, "the question has no answer, field 'label' holds None"),
        (float("nan"), "field 'label' is nan, as tables write what is missing"),
    ],
)
def test_an_answer_that_is_not_there_is_named(label, message):
    with pytest.raises(DataError, match=message):
        maker(SPANS).all([{"text": "the team won", "label": label}])


def test_an_answer_of_which_the_tokenizer_makes_nothing_is_named(minilm):
    with pytest.raises(DataError, match="row 1: no token stands for the answer"):
        maker(SPANS, tokenizer=minilm.tokenizer).all([{"text": "a \u200b b", "label": "\u200b"}])


@every_kind
def test_from_an_answer_that_was_cut_away_nothing_is_learned(kind):
    content = "the team won " * 20 + "the market fell"
    whole = maker(SPANS, kind)({"text": content, "label": "market fell"})
    place = whole.reads[whole.target.index(BEGINS)]
    ending = len(whole.tokens) - whole.reads[-1] - 1
    for limit, kept in ((place + 2 + ending, True), (place + 1 + ending, False), (20, False)):
        task = Task(SPANS.template, kind="question-answering", max_length=limit)
        example = maker(task, kind)({"text": content, "label": "market fell"})
        assert len(example.tokens) == limit
        assert len(example.reads) == len(example.spans) == len(example.target)
        assert example.reads == whole.reads[: len(example.reads)]
        assert (sum(example.target) == BEGINS + ENDS) == kept
        assert kept or set(example.target) == {IGNORED}
        assert example.missed == (() if kept else (IGNORED,))
        assert maker(task, kind)({"text": content}, answered=False).missed == ()


# Several labels, and what rows have in common


SEVERAL = Task("{text}:{label}", ["a b", "c", "d"], kind="multi-label", none="x")


@pytest.mark.parametrize(
    ("label", "labels"),
    [
        ("a b|d", (0, 2)),
        (" d | a b ", (0, 2)),
        (["d", "a b", "d"], (0, 2)),
        (("c",), (1,)),
        ("c", (1,)),
        ("", ()),
        ([], ()),
        ("|", ()),
    ],
)
def test_several_labels_are_a_list_or_text_with_bars(label, labels):
    example = maker(SEVERAL, "decoder")({"text": "won", "label": label})
    assert (example.labels, example.target, example.reads) == (labels, (), None)


@pytest.mark.parametrize("label", ["a|b", ["a b", "e"], "c,d"])
def test_a_label_among_several_that_is_unknown_is_named(label):
    with pytest.raises(LabelError, match=r"row 1: unknown label '.*'. The task's labels are a b, c, d"):
        maker(SEVERAL, "decoder").all([{"text": "won", "label": label}])


def test_rows_of_one_answer_share_a_number():
    made = maker(Task("{text}", kind="feature-extraction"))
    one, same, other = (
        made({"text": text, "label": label}).label for text, label in (("a", "x"), ("b", "x"), ("a", "y"))
    )
    assert one == same != other
    assert 0 <= one < 2**56
    assert made({"text": "a", "label": 1}).label == made({"text": "a", "label": "1"}).label
