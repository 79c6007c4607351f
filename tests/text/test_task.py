from __future__ import annotations

import pytest

from softprompt.errors import LabelError, SettingsError, TemplateError
from softprompt.text.task import Task
from softprompt.text.template import Template

TEMPLATE = "{text}\nTopic: {label}"


def test_without_labels_it_is_generation():
    task = Task(TEMPLATE)
    assert not task.classifies
    assert (task.labels, task.words, task.target, task.max_length) == ((), (), "label", None)


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        (["a", "b"], ("a", "b"), ("a", "b")),
        (("b", "a"), ("b", "a"), ("b", "a")),
        ({"0": "bad", "1": "good"}, ("0", "1"), ("bad", "good")),
        ([0, 1], ("0", "1"), ("0", "1")),
        ({0: "bad", 1: "good"}, ("0", "1"), ("bad", "good")),
    ],
)
def test_labels_are_a_list_or_a_mapping_to_their_words(labels, names, words):
    task = Task(TEMPLATE, labels)
    assert task.classifies
    assert (task.labels, task.words) == (names, words)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "two labels or more"),
        ({}, "two labels or more"),
        (["a"], r"two labels or more, not \['a'\]"),
        (["a", "b", "a"], "a label stands twice"),
        ([1, "1"], "a label stands twice"),
        ({"x": "yes", "y": "yes"}, "a label word stands twice"),
        (["a", ""], "an empty label"),
        (["a", "  \n"], "an empty label"),
        ({"x": "yes", "y": " "}, "an empty label word"),
        ("yes,no", "labels is the text 'yes,no'"),
        ("ab", r"labels=\["),
        (["a", None], "the label None is NoneType, not text"),
        ([True, False], "the label True is bool, not text"),
        ({"x": "yes", "y": ["no"]}, "the label word .* is list, not text"),
    ],
)
def test_labels_that_cannot_be_told_apart_or_read_are_refused(labels, message):
    with pytest.raises(LabelError, match=message) as refused:
        Task(TEMPLATE, labels)
    assert refused.value.instead


def test_a_field_that_is_also_the_target_is_refused():
    with pytest.raises(TemplateError, match=r"field {answer} is also the target"):
        Task("{question} {answer} {label}", target="answer")
    assert Task("{question} {label}", target="answer").target == "answer"


@pytest.mark.parametrize("length", [0, -3])
def test_a_maximum_length_is_positive(length):
    with pytest.raises(SettingsError, match=f"max_length is {length}"):
        Task(TEMPLATE, max_length=length)


@pytest.mark.parametrize("labels", [None, {"0": "bad", "1": "good"}])
def test_another_template_changes_nothing_else(labels):
    task = Task(TEMPLATE, labels, target="class", max_length=50)
    changed = task.with_template(Template.parse("{soft:3}{text}{label}"))
    assert changed == Task("{soft:3}{text}{label}", labels, target="class", max_length=50)


def test_equal_tasks_are_one_key():
    assert len({Task(TEMPLATE, ["a", "b"]), Task(Template.parse(TEMPLATE), ("a", "b"))}) == 1
