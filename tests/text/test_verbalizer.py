from __future__ import annotations

import pytest
from tokenizers import normalizers

import tiny
from softprompt.errors import LabelError
from softprompt.text.task import Task
from softprompt.text.tokens import PieceTokenizer
from softprompt.text.verbalizer import Verbalizer, label_index


def verbalizer(labels, template: str = "{text}\nTopic: {label}", tokenizer=None) -> Verbalizer:
    return Verbalizer(Task(template, labels), PieceTokenizer(tokenizer or tiny.tokenizer()))


def test_words_are_written_behind_the_template_blank():
    tokenizer = tiny.tokenizer()
    for blank in ("", " "):
        made = verbalizer({"s": "sports", "b": "business"}, f"{{text}}\nTopic:{blank}{{label}}", tokenizer)
        assert [tokenizer.decode(word) for word in made.words] == [f"{blank}sports", f"{blank}business"]
        assert made.labels == ("s", "b")


def test_words_that_open_the_text_are_written_as_openings(metaspace):
    made = verbalizer(["sports", "business"], "{soft:3}{label}", metaspace)
    assert list(made.words[0]) == metaspace("sports", add_special_tokens=False)["input_ids"]


def test_different_first_tokens_tell_labels_apart():
    assert verbalizer(["sports", "business"]).by_first_token


def test_labels_with_one_first_token_are_scored_by_whole_words():
    made = verbalizer(["the match", "the market"])
    assert made.words[0][0] == made.words[1][0]
    assert not made.by_first_token


@pytest.mark.parametrize(
    ("labels", "first", "second"),
    [
        ({"x": "sports", "y": "sports fell"}, "sports", "sports fell"),
        ({"y": "sports fell", "z": "other", "x": "sports"}, "sports", "sports fell"),
    ],
)
def test_a_word_that_begins_another_is_refused(labels, first, second):
    with pytest.raises(LabelError, match=f"'{first}' and '{second}' cannot be told apart: one begins the other") as no:
        verbalizer(labels)
    assert "label" in no.value.where
    assert "labels=" in no.value.instead


def test_words_with_the_same_tokens_are_refused():
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(LabelError, match="label words 'Yes' and 'yes' have the same tokens") as refused:
        verbalizer({"a": "Yes", "b": "no", "c": "yes"}, tokenizer=tokenizer)
    assert refused.value.where == "labels 'a' and 'c'"


def test_a_label_is_found_by_its_value_not_by_its_word():
    made = verbalizer({"0": "bad", "1": "good"})
    assert [label_index(made.labels, label) for label in ("0", "1", 1)] == [0, 1, 1]
    with pytest.raises(LabelError, match="unknown label 'good'"):
        label_index(made.labels, "good")


def test_an_unknown_label_is_named_with_its_row():
    with pytest.raises(LabelError, match=r"row 7: unknown label 'Sport'. The task's labels are sports, business"):
        label_index(("sports", "business"), "Sport", "row 7")


def test_a_whole_text_given_for_a_label_is_not_repeated_whole():
    with pytest.raises(LabelError) as refused:
        label_index(("sports", "business"), "x" * 10_000)
    assert len(str(refused.value)) < 250


def test_a_number_that_is_no_label_counts_them():
    assert [label_index(("sports", "business"), number) for number in (0, 1)] == [0, 1]
    # Where labels are numbers, it can only be one of these.
    assert label_index(("2", "1", "0"), 0) == 2
    for labels, label in ((("1", "2", "3"), 0), (("1", "2", "x"), 0), (("-1", "+1"), 1)):
        with pytest.raises(LabelError, match=rf"row 7: unknown label '{label}'\. The task's labels are [^.]*\.$"):
            label_index(labels, label, "row 7")


@pytest.mark.parametrize(
    ("label", "advice"),
    [
        (2, "Write one of them, or its number, from 0 to 1.$"),
        (-1, "Write one of them, or its number, from 0 to 1.$"),
        ("1", "or its number, from 0 to 1: a number, not text"),
    ],
)
def test_a_number_that_counts_no_label_is_refused_with_those_that_do(label, advice):
    with pytest.raises(
        LabelError, match=rf"unknown label '{label}'. The task's labels are sports, business. .*{advice}"
    ):
        label_index(("sports", "business"), label)
