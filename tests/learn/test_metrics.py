"""Metrics of every kind of task, against numbers worked out by hand from the answers to each row alone."""

from __future__ import annotations

import math

import pytest
import torch

import reference
from softprompt.answer.engine import Engine
from softprompt.learn.evaluation import evaluate
from softprompt.learn.metrics import _macro_f1, of_labels
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.run.score import head_outputs
from softprompt.text.task import Task
from toys import LABELS, ROWS, prompt, rows_of, task_of

FAMILIES = ("llama", "bert", "t5", "bart")
every_family = pytest.mark.parametrize("family", FAMILIES)


def asked(family: str, task: Task, rows, *, seed: int = 0):
    """Metrics, and the answer to each row by itself."""
    backbone = reference.backbone(family)
    saved = prompt(backbone, task, seed=seed)
    engine = Engine(backbone)
    engine.add("p", saved)
    answers = [engine.answer([("p", row)])[0] for row in rows]
    found = evaluate(backbone, saved, rows, progress=False, batch_size=4)
    reversed_ = evaluate(backbone, saved, rows[::-1], progress=False, batch_size=3)
    assert found == pytest.approx(reversed_, rel=1e-4)
    return found, answers


def f1(said: list[bool], is_: list[bool]) -> float:
    """Of yes and no; 1 where nobody said yes."""
    both = sum(a and b for a, b in zip(said, is_, strict=True))
    total = sum(said) + sum(is_)
    return 2 * both / total if total else 1.0


@every_family
def test_of_one_label_a_row(family):
    # The last of the labels never occurs.
    task = Task("{soft:4}Article: {text}", [*LABELS, "tech"], kind="sequence-classification")
    found, answers = asked(family, task, ROWS)
    truth, guess = [row["label"] for row in ROWS], [a.label for a in answers]
    occurring = [label for label in task.labels if label in truth or label in guess]
    scores = [f1([g == label for g in guess], [t == label for t in truth]) for label in occurring]
    assert found["accuracy"] == pytest.approx(sum(map(str.__eq__, truth, guess)) / 6)
    assert found["macro_f1"] == pytest.approx(sum(scores) / len(scores))
    losses = [-math.log(a.probabilities[t]) for a, t in zip(answers, truth, strict=True)]
    assert found["loss"] == pytest.approx(sum(losses) / 6, rel=1e-4)
    assert set(found) == {"accuracy", "macro_f1", "loss", "rows_cut"}


@every_family
def test_of_one_label_a_word(family):
    task = task_of("token-classification", reference.backbone(family))
    found, answers = asked(family, task, rows_of("token-classification"))
    truth = [label for row in rows_of("token-classification") for label in row["label"]]
    guess = [label for a in answers for label in a.labels]
    assert len(truth) == len(guess) == 19
    assert found["accuracy"] == pytest.approx(sum(map(str.__eq__, truth, guess)) / 19)
    likely = [p for a in answers for p in a.probabilities]
    losses = [-math.log(p if g == t else 1 - p) for p, g, t in zip(likely, guess, truth, strict=True)]
    assert found["loss"] == pytest.approx(sum(losses) / 19, rel=1e-4)


@every_family
@pytest.mark.parametrize("seed", [0, 1])
def test_of_several_labels(family, seed):
    task = task_of("multi-label", reference.backbone(family))
    found, answers = asked(family, task, rows_of("multi-label"), seed=seed)
    truth = [[label in row["label"] for label in LABELS] for row in rows_of("multi-label")]
    said = [[label in a.labels for label in LABELS] for a in answers]
    columns = [([row[c] for row in said], [row[c] for row in truth]) for c in range(2)]
    occurring = [pair for pair in columns if any(pair[0]) or any(pair[1])]
    assert found["accuracy"] == pytest.approx(sum(s == t for s, t in zip(said, truth, strict=True)) / 6)
    assert found["micro_f1"] == pytest.approx(f1([s for row in said for s in row], [t for row in truth for t in row]))
    assert found["macro_f1"] == pytest.approx(sum(f1(*pair) for pair in occurring) / len(occurring))
    losses = [
        -math.log(a.probabilities[label] if label in row["label"] else 1 - a.probabilities[label])
        for a, row in zip(answers, rows_of("multi-label"), strict=True)
        for label in LABELS
    ]
    assert found["loss"] == pytest.approx(sum(losses) / 12, rel=1e-3)
    for a in answers:
        assert a.labels == tuple(label for label in LABELS if a.probabilities[label] > 0.5)


@torch.no_grad()
@every_family
def test_of_spans(family):
    backbone = reference.backbone(family)
    rows = [*rows_of("question-answering"), {"text": "the team won", "label": "the team"}]
    task = Task("{soft:4}Article: {text}", kind="question-answering", max_length=10)
    found, answers = asked(family, task, rows)
    saved, maker = prompt(backbone, task), example_maker(backbone, task)
    exact, overlaps, losses = 0, [], []
    for row, answer in zip(rows, answers, strict=True):
        example = maker(row)
        spans = list(example.spans)
        guess = {i for i, (a, b) in enumerate(spans) if a < answer.end and b > answer.start}
        right = {i for i, t in enumerate(example.target) if t > 0}
        if not right:  # cut away
            overlaps.append(0.0)
            continue
        right = set(range(min(right), max(right) + 1))
        exact += guess == right
        overlaps.append(2 * len(guess & right) / (len(guess) + len(right)))
        (outputs,) = head_outputs(Forward(backbone), [example], [saved.head], [Filling(saved.values)])
        logs = outputs.log_softmax(dim=0)
        losses.append(-float(logs[min(right), 0] + logs[max(right), 1]) / 2)
    assert len(losses) < len(rows)
    assert found["accuracy"] == pytest.approx(exact / len(rows))
    assert found["f1"] == pytest.approx(sum(overlaps) / len(rows))
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert found["rows_cut"] > 0


@every_family
def test_of_vectors(family):
    found, answers = asked(family, task_of("feature-extraction", reference.backbone(family)), ROWS)
    vectors = [torch.tensor(a.vector) for a in answers]
    right = 0
    for i, row in enumerate(ROWS):
        cosines = {j: float(torch.cosine_similarity(vectors[i], v, dim=0)) for j, v in enumerate(vectors) if j != i}
        right += ROWS[max(cosines, key=cosines.get)]["label"] == row["label"]
    assert found["accuracy"] == pytest.approx(right / 6)
    assert set(found) == {"accuracy", "loss", "rows_cut"}


def test_a_vector_that_has_no_other_beside_it_is_near_to_none_of_its_kind():
    found, _ = asked("bert", task_of("feature-extraction", reference.backbone("bert")), ROWS[:1])
    assert found == {"accuracy": 0.0, "loss": 0.0, "rows_cut": 0}


def test_labels_that_neither_occur_nor_are_guessed_do_not_count():
    table = torch.tensor([[0.7, 0.2, 0.1, 0.0001], [0.6, 0.3, 0.1, 0.0001], [0.2, 0.7, 0.1, 0.0001]]).log()
    found = of_labels(table.argmax(dim=-1), table, torch.tensor([0, 1, 1]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    # Two labels have 2 * 1 / (2 + 1) each; the third and fourth are nobody's.
    assert found["macro_f1"] == pytest.approx(2 / 3)
    nobody = torch.zeros(4, 3, dtype=torch.bool)
    assert _macro_f1(nobody, nobody) == 1.0
    assert _macro_f1(nobody | torch.tensor([True, False, False]), nobody) == 0.0
