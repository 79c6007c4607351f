"""Every kind of task is learned, saved, loaded and gone on with, on every kind of backbone."""

from __future__ import annotations

import re

import pytest
import torch

import reference
import tiny
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.errors import DataError, SettingsError
from softprompt.learn.evaluation import evaluate
from softprompt.learn.training import HEAD_LEARNING_RATE
from softprompt.prompts import HardPrompt, PrefixTuning, PromptTuning, PTuning
from softprompt.text.task import Task
from toys import HEADED, LABELS, ROWS, at, interrupt, kinds_of, learn, pairs, rows_of, task_of

FAMILIES = ("llama", "bert", "t5", "bart")
METHODS = {"prefix": PrefixTuning(tokens=4), "p-tuning": PTuning(tokens=4)}
NEW = [p for p in pairs(*FAMILIES) if p[0] != "llama" or p[1] not in ("generation", "classification")]


def run(family: str, kind: str, backbone=None, **options):
    backbone = backbone or reference.backbone(family)
    task, rows = task_of(kind, backbone), rows_of(kind)
    return learn(backbone, task, rows, **{"eval_rows": rows, "steps": 3, "learning_rate": 0.05} | options)


@pytest.mark.parametrize(("family", "kind"), NEW)
def test_prompt_and_head_move_and_the_backbone_stays(family, kind):
    backbone = tiny.backbone(family)
    before = reference.state(backbone.model)
    result = run(family, kind, backbone)
    assert reference.state(backbone.model) == before
    start, now = result.prompt.state.start, result.prompt.tensors()
    moved = (now["embeddings"] - start["embeddings"]).abs().amax(dim=1)
    assert float(moved.min()) > 0
    assert (set(now) == {"embeddings", "head.weight", "head.bias"}) == (kind in HEADED)
    for name in set(now) - {"embeddings"}:
        assert bool((now[name] != start[name]).any(dim=-1).all()), name
    assert all(torch.isfinite(torch.tensor(list(result.metrics.values()))))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("family", "kind"), [p for p in NEW if p[0] != "bart"])
def test_every_method_learns_it(family, kind, method):
    result = run(family, kind, method=method, steps=2, learning_rate=0.01)
    start, now = result.prompt.state.start, result.prompt.tensors()
    # Where an encoder-decoder's encoder is read, its decoder never runs.
    idle = family == "t5" and kind in ("token-classification", "question-answering", "feature-extraction")
    assert {name for name in now if torch.equal(now[name], start[name])} == {
        name for name in now if idle and "decoder" in name
    }


@pytest.mark.parametrize(("family", "kind"), NEW)
def test_a_saved_prompt_answers_as_the_one_that_was_trained(tmp_path, family, kind):
    backbone, rows = reference.backbone(family), rows_of(kind)
    result = run(family, kind, output=tmp_path / "p")
    (tmp_path / "p" / artifact.TRAINING).unlink()
    engine = Engine(backbone)
    engine.add("live", result.prompt)
    engine.add("saved", tmp_path / "p")
    live, saved = (engine.answer([(name, row) for row in rows], max_new_tokens=4) for name in ("live", "saved"))
    assert live == saved
    loaded = artifact.load(tmp_path / "p", backbone)
    assert loaded.task == result.prompt.task
    measured = evaluate(backbone, loaded, rows, progress=False)
    assert result.metrics == pytest.approx({k: measured[k] for k in result.metrics}, rel=1e-5)


@pytest.mark.parametrize("kind", HEADED)
def test_what_can_be_learned_by_a_head_is_learned(kind):
    for family in ("llama", "bert", "t5"):
        result = run(family, kind, steps=40)
        assert result.metrics["accuracy"] == 1, family
        assert result.metrics["loss"] < 0.3, family


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_several_labels_and_likeness_are_learned(family):
    several = run(family, "multi-label", steps=60, learning_rate=0.2)
    losses = [entry["loss"] for entry in several.history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    alike = run(family, "feature-extraction", steps=30, learning_rate=0.2, batch_size=6)
    losses = [entry["loss"] for entry in alike.history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("family", "kind"), [*zip(("llama", "bert", "t5"), HEADED, strict=True)])
def test_resuming_with_a_head_ends_where_a_straight_run_ends(tmp_path, family, kind):
    options = {"steps": 7, "eval_every": 3}
    straight = run(family, kind, output=tmp_path / "straight", **options)
    with pytest.raises(KeyboardInterrupt):
        run(family, kind, output=tmp_path / "p", callbacks=[at("on_step_end", 6, interrupt)], **options)
    resumed = run(family, kind, output=tmp_path / "p", resume=True, **options)
    for file in (artifact.PROMPT, artifact.TRAINING):
        assert (tmp_path / "p" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    assert dict(resumed.metrics) == dict(straight.metrics)


def test_a_run_that_reads_elsewhere_is_another_run(tmp_path):
    rows = [{"a": "the", "b": "the", "label": "sports"}]
    tasks = [Task("{soft:2}{a} {b}{a} {b}", LABELS, kind="token-classification", field=field) for field in ("a", "b")]
    output = {"output": tmp_path / "p", "steps": 6}
    with pytest.raises(KeyboardInterrupt):
        learn(reference.backbone("bert"), tasks[0], rows, callbacks=[at("on_save", 5, interrupt)], **output)
    with pytest.raises(SettingsError, match=r"had another .*field"):
        learn(reference.backbone("bert"), tasks[1], rows, resume=True, **output)


@pytest.mark.parametrize("kind", HEADED)
def test_a_prompt_with_a_head_is_begun_from(tmp_path, kind, caplog):
    first = run("bert", kind, output=tmp_path / "p")
    second = run("bert", kind, start=tmp_path / "p", steps=1, learning_rate=1e-12)
    for name, tensor in first.prompt.tensors().items():
        assert torch.equal(second.prompt.state.start[name], tensor)
    assert not [r for r in caplog.records if r.name == "softprompt"]


def test_a_prompt_without_the_head_is_begun_from_with_a_new_head(tmp_path):
    first = run("bert", "classification", output=tmp_path / "p")
    second = run("bert", "sequence-classification", start=tmp_path / "p", steps=1)
    assert torch.equal(second.prompt.state.start["embeddings"], first.prompt.values.embeddings)
    assert float(second.prompt.state.start["head.weight"].abs().max()) > 0


@pytest.mark.parametrize(
    ("kind", "labels", "outcome"),
    [
        ("sequence-classification", LABELS[::-1], "with the labels business, sports: its head is begun anew."),
        ("sequence-classification", [*LABELS, "x"], "with the labels sports, business, x: its head is begun anew."),
        ("token-classification", LABELS, "this task is a token-classification .*: its head is begun anew."),
        ("question-answering", None, "this task is a question-answering: its head is begun anew."),
        ("classification", LABELS, "this task is a classification with the labels sports, business: none is taken"),
    ],
)
def test_a_head_that_is_not_taken_over_is_told(tmp_path, caplog, kind, labels, outcome):
    first = run("bert", "sequence-classification", output=tmp_path / "p")
    template = task_of(kind, reference.backbone("bert")).template
    second = learn(
        reference.backbone("bert"), Task(template, labels, kind=kind), rows_of(kind), start=tmp_path / "p", steps=1
    )
    assert torch.equal(second.prompt.state.start["embeddings"], first.prompt.values.embeddings)
    (told,) = [r.getMessage() for r in caplog.records if r.name == "softprompt"]
    assert told.startswith(f"{tmp_path / 'p'}: its head is for a sequence-classification with the labels sports, busi")
    assert re.search(outcome, told)


def test_a_head_for_other_labels_is_not_taken_over(tmp_path):
    backbone = reference.backbone("bert")
    task = task_of("sequence-classification", backbone)
    first = run("bert", "sequence-classification", output=tmp_path / "p")
    other = Task(task.template, LABELS[::-1], kind="sequence-classification")
    second = learn(backbone, other, ROWS, method=PromptTuning(tokens=4), start=tmp_path / "p", steps=1).prompt
    assert torch.equal(second.state.start["embeddings"], first.prompt.values.embeddings)
    assert not torch.equal(second.state.start["head.weight"], first.prompt.head.weight)


def test_rows_that_have_nothing_in_common_are_refused():
    rows = [{**row, "label": str(i)} for i, row in enumerate(ROWS)]
    backbone = reference.backbone("bert")
    with pytest.raises(DataError, match="no two rows have the same 'label'"):
        learn(backbone, task_of("feature-extraction", backbone), rows)


@pytest.mark.parametrize("kind", HEADED)
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_head_is_learned_over_text_alone(tmp_path, family, kind):
    """A linear probe."""
    backbone = reference.backbone(family)
    task, rows = task_of(kind, backbone, soft=""), rows_of(kind)
    result = learn(backbone, task, rows, rows, HardPrompt(), steps=40, learning_rate=0.1, output=tmp_path / "p")
    assert result.prompt.task.template.source == "Article: {text}"
    assert set(result.prompt.tensors()) == {"embeddings", "head.weight", "head.bias"}
    assert result.prompt.values.tokens == 0
    assert result.prompt.training["trained_parameters"] == 2 * 32 + 2
    assert not torch.equal(result.prompt.head.weight, result.prompt.state.start["head.weight"])
    assert result.metrics["accuracy"] > 0.8
    loaded = artifact.load(tmp_path / "p", backbone, training=True)
    assert evaluate(backbone, loaded, rows, progress=False)["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)


def test_a_head_alone_has_a_learning_rate_of_its_own():
    backbone = reference.backbone("bert")
    task = task_of("sequence-classification", backbone, soft="")
    result = learn(backbone, task, ROWS, method=HardPrompt(), steps=1)
    assert result.prompt.training["learning_rate"] == HEAD_LEARNING_RATE


@pytest.mark.parametrize("kind", ["feature-extraction", "classification"])
def test_text_alone_without_a_head_is_measured(kind):
    backbone = reference.backbone("bert")
    task = task_of(kind, backbone, soft="")
    result = learn(backbone, task, ROWS, ROWS, HardPrompt())
    assert result.history == []
    assert result.prompt.state is None
    with pytest.raises(SettingsError, match="learns nothing, so it takes no steps"):
        learn(backbone, task, ROWS, ROWS, HardPrompt(), steps=3)


def test_a_label_word_is_where_a_prompt_starts_only_where_there_are_words():
    method = PromptTuning(tokens=4, init="labels")
    for kind in kinds_of("bert"):
        if kind in ("classification", "multi-label"):
            assert run("bert", kind, method=method, steps=1).prompt.values.tokens == 4
        else:
            with pytest.raises(SettingsError, match=r"init: init='labels' needs a task with label words.*trained head"):
                run("bert", kind, method=method, steps=1)


def test_rows_whose_answers_were_cut_away_do_no_harm():
    backbone = reference.backbone("bert")
    task = Task("{soft:2}{text}", kind="question-answering", max_length=12)
    rows = [{"text": "the team won " * 9 + "fell", "label": "fell"}] * 3
    # In a step of one row there is often nothing to be learned from.
    some = learn(backbone, task, [*rows, {"text": "the team", "label": "team"}], batch_size=1, steps=8)
    assert all(torch.isfinite(t).all() for t in some.prompt.tensors().values())
