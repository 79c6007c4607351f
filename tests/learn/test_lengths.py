"""What rows that are too long lose is said, counts as wrong, and is refused where it is everything."""

from __future__ import annotations

import math

import pytest
import torch

import reference
from softprompt.answer.engine import Engine
from softprompt.errors import LengthError
from softprompt.learn.evaluation import evaluate
from softprompt.learn.metrics import of_labels
from softprompt.learn.sources import Source
from softprompt.prompts import MultitaskPromptTuning
from softprompt.text.task import Task
from toys import FRONT, LABELS, ROWS, learn, learn_ensemble, learn_together, prompt, rows_of

SHORT = {"text": "the team", "label": "team"}
LONG = {"text": "the team won " * 9 + "fell", "label": "fell"}
SPANS = Task("{soft:4}{text}", kind="question-answering", max_length=16)
TAGS = Task("{soft:4}{text}", LABELS, kind="token-classification", max_length=16)
TAGGED = [
    {"text": "the team", "label": LABELS},
    {"text": "the team won " * 9, "label": LABELS * 13 + LABELS[:1]},
    {"text": "fell " * 30, "label": LABELS[1:] * 30},
]


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "softprompt"]


def test_how_many_rows_lost_their_answer_is_said_before_they_are_learned_from(caplog):
    backbone = reference.backbone("bert")
    result = learn(backbone, SPANS, [SHORT, LONG, LONG], [LONG, SHORT])
    assert said(caplog) == [
        "2 of 3 training rows lost their answer, because the rows were too long: nothing is learned from them. "
        "Raise max_length (16), or give shorter texts.",
        "1 of 2 evaluation rows lost their answer, because the rows were too long: they count as wrong. "
        "Raise max_length (16), or give shorter texts.",
    ]
    facts = result.prompt.training
    assert (facts["training_rows"], facts["training_rows_cut"], facts["training_answers_missed"]) == (3, 2, 2)
    assert (facts["evaluation_rows"], facts["evaluation_rows_cut"], facts["evaluation_answers_missed"]) == (2, 1, 1)


def test_what_is_only_measured_counts_them_too(caplog):
    backbone = reference.backbone("bert")
    found = evaluate(backbone, prompt(backbone, SPANS), [SHORT, LONG, SHORT, SHORT], progress=False)
    assert said(caplog)[0].startswith("1 of 4 rows lost their answer")
    assert (found["rows_cut"], found["answers_missed"]) == (1, 1)
    alone = evaluate(backbone, prompt(backbone, SPANS), [SHORT], progress=False)
    assert found["accuracy"] == alone["accuracy"] * 3 / 4
    assert found["loss"] == pytest.approx(alone["loss"])


def test_where_no_row_keeps_its_answer_nothing_is_begun():
    backbone = reference.backbone("bert")
    message = r"max_length: all of the 2 {} lost their answer.* Raise max_length \(16\)"
    with pytest.raises(LengthError, match=message.format("training rows")):
        learn(backbone, SPANS, [LONG, LONG], [SHORT])
    with pytest.raises(LengthError, match=message.format("evaluation rows")):
        learn(backbone, SPANS, [SHORT], [LONG, LONG])
    with pytest.raises(LengthError, match=message.format("rows")):
        evaluate(backbone, prompt(backbone, SPANS), [LONG, LONG], progress=False)


def test_where_the_model_has_no_more_positions_max_length_is_not_advised():
    task = Task("{soft:4}{text}", kind="question-answering", max_length=5000)
    long = {"text": "the team won " * 90 + "fell", "label": "fell"}
    with pytest.raises(LengthError, match=r"^all of the 1 training .*The model has 128 positions: give shorter texts"):
        learn(reference.backbone("bert"), task, [long])


def test_nothing_is_said_where_nothing_that_is_asked_for_was_cut_away(caplog):
    backbone = reference.backbone("bert")
    long = {"text": "team " * 30, "label": "team"}  # cut, but not the answer
    result = learn(backbone, SPANS, [long, SHORT], [long])
    assert result.prompt.training["training_rows_cut"] == 1
    topics = Task(FRONT, LABELS, max_length=20)
    result = learn(task=topics, rows=[{**ROWS[0], "text": "the team won " * 30}, *ROWS[1:]], eval_rows=ROWS)
    assert (result.prompt.training["training_rows_cut"], result.prompt.training["evaluation_rows_cut"]) == (1, 0)
    assert not said(caplog)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_words_that_were_cut_away_count_as_wrong(family, caplog):
    backbone = reference.backbone(family)
    saved = prompt(backbone, TAGS)
    found = evaluate(backbone, saved, TAGGED, progress=False)
    engine = Engine(backbone)
    engine.add("p", saved)
    guess = [label for a in engine.tag([("p", row) for row in TAGGED]) for label in a.labels]
    truth = [label for row in TAGGED for label in row["label"]]
    assert len(guess) == len(truth) == 2 + 27 + 30
    missed = guess.count(None)
    assert 30 < missed < 59
    scores = []
    for label in LABELS:
        both = sum(g == t == label for g, t in zip(guess, truth, strict=True))
        scores.append(2 * both / (guess.count(label) + truth.count(label)))
    assert found["accuracy"] == pytest.approx(sum(g == t for g, t in zip(guess, truth, strict=True)) / len(truth))
    assert found["macro_f1"] == pytest.approx(sum(scores) / 2)
    assert math.isfinite(found["loss"])
    assert (found["rows_cut"], found["answers_missed"]) == (2, missed)
    assert said(caplog) == [
        f"{missed} of 59 words, in 2 of 3 rows, were cut away, because the rows were too long: they count as wrong. "
        "Raise max_length (16), or give shorter texts."
    ]


def test_a_word_that_the_tokenizer_makes_nothing_of_counts_as_wrong_but_was_not_cut_away(minilm, caplog):
    saved = prompt(minilm, Task("{soft:2}{text}", LABELS, kind="token-classification"))
    words = {"text": ["team", "\u200b"], "label": LABELS}
    found = evaluate(minilm, saved, [words], progress=False)
    assert (found["answers_missed"], found["rows_cut"]) == (1, 0)
    assert found["accuracy"] in (0.0, 0.5)
    assert not said(caplog)


def test_of_what_was_given_no_label_none_is_right():
    table = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    found = of_labels(torch.tensor([0, 1]), table, torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert found["accuracy"] == 2 / 4
    assert found["macro_f1"] == pytest.approx((1.0 + 2 * 1 / (1 + 3)) / 2)
    assert found["loss"] == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2)


def test_of_several_tasks_it_is_said_which_lost_what(caplog):
    backbone = reference.backbone("bert")
    tags = {"a": Source(TAGS, TAGGED[:1]), "b": Source(TAGS, TAGGED)}
    learn_together(backbone, tags, MultitaskPromptTuning(tokens=4), distill=0, steps=1)
    assert len(said(caplog)) == 1
    assert "in 2 of 3 training rows of b, were cut away" in said(caplog)[0]


def test_of_several_seeds_it_is_said_once(caplog):
    rows = [*rows_of("token-classification")[:2], TAGGED[2]]
    learn_ensemble(reference.backbone("bert"), TAGS, rows, rows, steps=1)
    training, evaluation = said(caplog)
    assert "in 1 of 3 training rows, were cut away" in training
    assert "in 1 of 3 evaluation rows, were cut away" in evaluation
