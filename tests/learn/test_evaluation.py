from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import reference
import tiny
import toys
from softprompt import Engine, ensemble
from softprompt.errors import DataError, LabelError, MismatchError, SettingsError
from softprompt.learn.evaluation import evaluate
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task
from toys import FRONT, ROWS, TOPICS, WRITING, plain_probabilities, prompt

# Whichever labels the random prompt picks, they are not all right and not all wrong.
MANY = [{"text": t, "label": label} for t in ("won", "fell", "x", "the match", "y, z") for label in ("a", "b", "c")]
THREE = Task(FRONT, ["a", "b", "c"])
# Some of them are neither an answer nor a guess.
MORE = Task(FRONT, list("abcdefghijkl"))
ONE_TOKEN = Task(FRONT, {"sports": "the match", "business": "the market"})


def measured(task, rows, **options):
    backbone = reference.backbone("llama")
    return evaluate(backbone, prompt(backbone, task), rows, progress=False, **options)


@pytest.mark.parametrize(("task", "rows"), [(THREE, MANY), (MORE, MANY), (TOPICS, ROWS), (ONE_TOKEN, ROWS)])
def test_classification_metrics_are_those_of_the_plain_model(task, rows):
    found = measured(task, rows)
    table = plain_probabilities("llama", prompt(reference.backbone("llama"), task), rows).log()
    truth = torch.tensor([task.labels.index(row["label"]) for row in rows])
    guess = table.argmax(-1)
    f1 = []
    for label in range(len(task.labels)):
        both, either = ((guess == label) & (truth == label)).sum(), (guess == label).sum() + (truth == label).sum()
        f1 += [2 * int(both) / int(either)] if either else []
    assert found["loss"] == pytest.approx(float(F.nll_loss(table, truth)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((guess == truth).float().mean()))
    assert found["macro_f1"] == pytest.approx(sum(f1) / len(f1))
    assert found["rows_cut"] == 0


def test_generation_metrics_are_those_of_the_plain_model():
    backbone, model = reference.backbone("llama"), reference.plain("llama")
    values = prompt(backbone, WRITING).values.embeddings
    rows = [*MANY, {"text": "the team", "label": "won the match, the market fell"}]
    examples = tuple(ExampleMaker(WRITING, backbone.tokenizer).all(rows))
    case = reference.Case(examples, (values,), (0,) * len(rows))
    wanted = float(reference.loss(model, case))
    right = [reference.logits(model, e, p).argmax(-1) == torch.tensor(e.target) for e, p in case.alone()]
    found = measured(WRITING, rows)
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(wanted), rel=1e-4)
    assert found["token_accuracy"] == pytest.approx(float(torch.cat(right).float().mean()))


@pytest.mark.parametrize("task", [THREE, WRITING])
def test_metrics_do_not_depend_on_batches_or_on_the_order_of_rows(task):
    whole = measured(task, MANY)
    assert measured(task, MANY[::-1], batch_size=4) == pytest.approx(whole, rel=1e-5)
    assert measured(task, MANY, batch_size=1) == pytest.approx(whole, rel=1e-5)


def test_rows_that_had_to_be_shortened_are_counted():
    assert measured(TOPICS, [*ROWS, {"text": "won " * 500, "label": "sports"}])["rows_cut"] == 1


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"text": "x"}, DataError, "row 2: field 'label' is missing"),
        ({"label": "sports"}, DataError, "row 2: field 'text' is missing"),
        ({"text": "x", "label": "chess"}, LabelError, "row 2: unknown label 'chess'"),
        ({"text": None, "label": "sports"}, DataError, "row 2: field 'text' is null"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row, error, message):
    with pytest.raises(error, match=message):
        measured(TOPICS, [ROWS[0], row])


def test_no_rows_and_no_batch_are_refused():
    with pytest.raises(DataError, match="there is no row"):
        measured(TOPICS, [])
    with pytest.raises(SettingsError, match="batch_size is 0"):
        measured(TOPICS, ROWS, batch_size=0)


def test_a_prompt_of_another_backbone_is_refused():
    with pytest.raises(MismatchError, match="fingerprint"):
        evaluate(tiny.backbone(seed=1), prompt(reference.backbone("llama")), ROWS, progress=False)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_an_ensemble_whose_labels_may_all_apply_is_measured_as_it_answers(family):
    backbone = reference.backbone(family)
    task, rows = toys.task_of("multi-label", backbone), toys.rows_of("multi-label")
    members = {str(seed): toys.prompt(backbone, task, seed=seed) for seed in range(3)}
    found = evaluate(backbone, ensemble(members), rows, progress=False)
    engine = Engine(backbone)
    engine.add("all", ensemble(members))
    for by, name in (("vote", "accuracy"), ("mean", "mean_probability_accuracy")):
        answers = engine.classify([("all", row) for row in rows], by=by)
        right = [set(a.labels) == set(row["label"]) for a, row in zip(answers, rows, strict=True)]
        assert found[name] == pytest.approx(sum(right) / len(rows))
    alone = {name: evaluate(backbone, own, rows, progress=False)["accuracy"] for name, own in members.items()}
    assert {name: found[f"{name}.accuracy"] for name in members} == pytest.approx(alone)
    assert found["member_accuracy"] == pytest.approx(sum(alone.values()) / 3)
