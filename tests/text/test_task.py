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


ALL_KINDS = {
    "generation": Task("{text}{label}"),
    "classification": Task("{text}{label}", ["a", "b"]),
    "multi-label": Task("{text}{label}", ["a", "b"], kind="multi-label", none="neither"),
    "sequence-classification": Task("{text}", {"a": "x", "b": "y"}, kind="sequence-classification", target="class"),
    "token-classification": Task("{text} {other}", ["a", "b", "c"], kind="token-classification", field="text"),
    "question-answering": Task("{question} {text}", kind="question-answering", max_length=9),
    "feature-extraction": Task("{text}", kind="feature-extraction"),
}


@pytest.mark.parametrize(("kind", "task"), ALL_KINDS.items(), ids=ALL_KINDS)
def test_every_kind_keeps_what_it_is_with_another_template(kind, task):
    assert task.kind == kind
    changed = task.with_template(task.template.with_slot_in_front())
    assert {name: value for name, value in vars(changed).items() if name != "template"} == {
        name: value for name, value in vars(task).items() if name != "template"
    }


def test_how_many_numbers_a_head_gives():
    outputs = {kind: task.outputs for kind, task in ALL_KINDS.items() if task.outputs}
    assert outputs == {"sequence-classification": 2, "token-classification": 3, "question-answering": 2}
    assert [kind for kind, task in ALL_KINDS.items() if task.classifies] == [
        "classification",
        "sequence-classification",
    ]


def test_the_field_that_is_answered_in_is_the_last_unless_said_otherwise():
    assert [task.field for task in ALL_KINDS.values()] == [None] * 4 + ["text", "text", None]


@pytest.mark.parametrize(
    ("template", "labels", "options", "error", "message"),
    [
        (
            "{text}{label}",
            None,
            {"kind": "tagging"},
            SettingsError,
            r"^kind: kind 'tagging' is unknown\. Use one of gen",
        ),
        ("{text}{label}", ["a", "b"], {"kind": "generation"}, LabelError, "a generation has no labels"),
        ("{text}", ["a", "b"], {"kind": "question-answering"}, LabelError, "a question-answering has no labels"),
        ("{text}", ["a", "b"], {"kind": "feature-extraction"}, LabelError, "a feature-extraction has no labels"),
        (
            "{text}",
            None,
            {"kind": "token-classification"},
            LabelError,
            r"two labels or more, not \[\]. Give them all: l",
        ),
        ("{text}{label}", None, {"kind": "classification"}, LabelError, "or leave labels out for generation"),
        (
            "{text}",
            ["a", "b"],
            {"kind": "multi-label"},
            TemplateError,
            r"{label} stands in it 0 times.*{mask}, anywhere",
        ),
        ("{text}", None, {}, TemplateError, "{label} stands in it 0 times"),
        ("{text}{label}", ["a", "b"], {"kind": "sequence-classification"}, TemplateError, "is not answered in words"),
        ("{mask}{text}", None, {"kind": "feature-extraction"}, TemplateError, "is not answered in words.*Take {label}"),
        (
            "{soft:3}",
            None,
            {"kind": "question-answering"},
            TemplateError,
            r"answered inside a field.*Put one in: {text}",
        ),
        ("{text}", None, {"kind": "question-answering", "field": "x"}, TemplateError, "it has no field {x}"),
        (
            "{text}{label}",
            None,
            {"field": "text"},
            SettingsError,
            r"^field: a generation is not answered inside a field",
        ),
        (
            "{text}",
            None,
            {"kind": "question-answering", "target": "text"},
            TemplateError,
            "field {text} is also the target",
        ),
        (
            "{text}{label}",
            ["a", "none"],
            {"kind": "multi-label"},
            LabelError,
            "'none' is a label's word and the word for",
        ),
        (
            "{text}{label}",
            {"a": "no", "b": "yes"},
            {"kind": "multi-label", "none": "no"},
            LabelError,
            "'no' is a label's",
        ),
        ("{text}{label}", ["a", "b"], {"kind": "multi-label", "none": " "}, LabelError, "the word for none is empty"),
    ],
)
def test_what_does_not_go_with_a_kind_is_refused(template, labels, options, error, message):
    with pytest.raises(error, match=message) as refused:
        Task(template, labels, **options)
    assert refused.value.instead or "no field" in str(refused.value)


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


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind != "multi-label"])
@pytest.mark.parametrize("none", ["none", "neither", ""])
def test_a_word_for_no_label_is_of_several_labels_alone(kind, none):
    task = ALL_KINDS[kind]
    with pytest.raises(
        SettingsError, match=rf"^none: a {kind} has no word for no label, but none is '{none}'. Leave it"
    ):
        Task(task.template, list(task.labels) or None, kind=kind, none=none)


def test_the_word_for_no_label_is_none_unless_said_otherwise():
    assert Task("{text}{label}", ["a", "b"], kind="multi-label").none == "none"
    with pytest.raises(LabelError, match="'none' is a label's word and the word for none"):
        Task("{text}{label}", ["a", "none"], kind="multi-label")
    assert Task("{text}{label}", ["a", "none"]).labels == ("a", "none")
