"""Whoever gives the public functions something else is told what they take."""

from __future__ import annotations

from pathlib import Path

import pytest

import reference
from softprompt import (
    Engine,
    HardPrompt,
    PromptTuning,
    Source,
    Task,
    ensemble,
    evaluate,
    load,
    load_all,
    train,
    train_ensemble,
    train_sources,
)
from softprompt.errors import DataError, RequestError, SettingsError
from softprompt.prompts import MultitaskPromptTuning
from toys import LABELS, ROWS, TOPICS, prompt

METHOD, SHARED = PromptTuning(tokens=4), MultitaskPromptTuning(tokens=4)


@pytest.fixture(scope="module")
def backbone():
    return reference.backbone("llama")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("llama", TOPICS, METHOD, ROWS), r"backbone: backbone is str 'llama'. Give a model: Backbone.load\("),
        ((None, TOPICS, METHOD, ROWS), "backbone is NoneType None"),
        ((..., "{text}: {label}", METHOD, ROWS), r"task: task is str '{text}: {label}'. Give Task\("),
        ((..., TOPICS, PromptTuning, ROWS), r"method: method is the class PromptTuning. .*PromptTuning\(\)"),
        ((..., TOPICS, "prompt-tuning", ROWS), "method is str 'prompt-tuning'"),
    ],
)
@pytest.mark.parametrize("function", [train, train_ensemble])
def test_what_is_trained_is_asked_for(backbone, function, given, message):
    with pytest.raises(SettingsError, match=message):
        function(*(backbone if value is ... else value for value in given), progress=False)


BAD_ROWS = [
    ("rows.jsonl", r"is str 'rows.jsonl', not rows. Read the file first: softprompt.data.read\('rows.jsonl'\)."),
    (Path("rows.jsonl"), "is PosixPath.*softprompt.data.read"),
    (ROWS[0], "is dict .*, not rows. Give a list of rows: "),
    ((row for row in ROWS), r"is generator .*, not rows. Give a list of rows: list\(...\)"),
    (7, "is int 7, not rows"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS, ids=lambda value: type(value).__name__)
def test_rows_are_asked_for(backbone, rows, message):
    for function in (train, train_ensemble):
        with pytest.raises(DataError, match=f"^train_rows: train_rows {message}"):
            function(backbone, TOPICS, METHOD, rows, progress=False)
        with pytest.raises(DataError, match=f"^eval_rows: eval_rows {message}"):
            function(backbone, TOPICS, METHOD, ROWS, rows, progress=False)
    with pytest.raises(DataError, match=f"^rows: rows {message}"):
        evaluate(backbone, prompt(backbone), rows, progress=False)
    with pytest.raises(DataError, match=f"^rows: rows {message}"):
        Source(TOPICS, rows)
    with pytest.raises(DataError, match=f"^eval_rows: eval_rows {message}"):
        Source(TOPICS, ROWS, rows)


def test_what_goes_through_more_than_once_is_rows(backbone):
    class Rows:
        def __len__(self):
            return len(ROWS)

        def __iter__(self):
            return iter(ROWS)

    assert evaluate(backbone, prompt(backbone), Rows(), progress=False) == evaluate(
        backbone, prompt(backbone), ROWS, progress=False
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("llama", None, ROWS), "backbone is str 'llama'"),
        ((..., "prompts/topic", ROWS), r"prompt: prompt is str 'prompts/topic'. Give what was saved: load\("),
        ((..., METHOD, ROWS), "prompt is PromptTuning PromptTuning.*Give what was saved"),
    ],
)
def test_what_is_measured_is_asked_for(backbone, given, message):
    with pytest.raises(SettingsError, match=message):
        evaluate(*(backbone if value is ... else value for value in given), progress=False)


def test_what_answers_is_asked_for(backbone):
    with pytest.raises(SettingsError, match=r"backbone is str 'smollm2'. Give a model: Backbone.load"):
        Engine("smollm2")
    with pytest.raises(SettingsError, match=r"folder is NoneType None. Give a prompt's folder, or the prompt itself"):
        Engine(backbone).add("topic", None)


def test_several_tasks_are_asked_for(backbone):
    with pytest.raises(SettingsError, match=r"sources is list \[.*\. Give tasks by name"):
        train_sources(backbone, [Source(TOPICS, ROWS)] * 2, SHARED, progress=False)
    with pytest.raises(SettingsError, match=r"source b is tuple .*Give Source\(task, rows\)"):
        train_sources(backbone, {"a": Source(TOPICS, ROWS), "b": (TOPICS, ROWS)}, SHARED, progress=False)
    with pytest.raises(SettingsError, match="task is str"):
        Source("{text}{label}", ROWS)


@pytest.mark.parametrize("row", ["the team won", ["the team won", "sports"], None])
def test_a_row_that_is_none_is_told_how_rows_look(backbone, row):
    with pytest.raises(DataError, match=r'row 2: the row is .*, not fields by name. Give rows such as {"text": '):
        train(backbone, TOPICS, METHOD, [ROWS[0], row], progress=False)


def test_of_what_is_given_no_more_is_shown_than_one_line(backbone):
    with pytest.raises(RequestError) as refused:
        train("x" * 5000, Task("{text}{label}", LABELS), HardPrompt(), ROWS)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: load(5), "path is int 5. Give a prompt's folder"),
        (lambda: load_all(None), "path is NoneType None. Give the folder"),
        (lambda: ensemble(None), "prompts is NoneType None. Give a list"),
        (lambda: ensemble(name for name in "ab"), "prompts is generator"),
        (lambda: ensemble([1, 2]), "a member is int 1. Give a prompt, or its folder"),
        (lambda: Source(TOPICS, ROWS, teacher=5), "teacher is int 5"),
        (lambda: Task(5), "template is int 5. Give some text"),
        (lambda: Task("{text}{label}", target=None), "target is NoneType None"),
        (lambda: Task("{text}{label}", max_length=9.5), "max_length is 9.5. Give a whole number"),
        (lambda: Task("{text}{label}", max_length="40"), "max_length is '40'"),
    ],
)
def test_what_is_loaded_and_put_together_is_asked_for(given, message):
    with pytest.raises(SettingsError, match=message):
        given()
