from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch.nn import functional as F
from transformers import EarlyStoppingCallback

import reference
import tiny
from softprompt import artifact
from softprompt.backbone.backbone import Backbone
from softprompt.errors import OutputError, SettingsError, TemplateError
from softprompt.learn.evaluation import evaluate
from softprompt.prompts import HardPrompt, PromptTuning
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task
from toys import BEHIND, FRONT, LABELS, ROWS, TOPICS, WRITING, at, contents, decided_backbone, learn

TWO_SLOTS = Task("{soft:2}{text}{soft:3}:{label}", LABELS)
SHORT = [{"text": "won", "label": "sports"}, {"text": "fell", "label": "business"}]
SAME_FIRST_TOKEN = Task(FRONT, {"sports": "the match", "business": "the market"})


def losses(result) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]


def embeddings(result) -> torch.Tensor:
    return result.prompt.values.embeddings


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_backbone_stays_as_it_was_and_every_virtual_token_moves(family):
    backbone = tiny.backbone(family)
    before = reference.state(backbone.model)
    result = learn(backbone, TWO_SLOTS, SHORT, SHORT, steps=2)
    assert reference.state(backbone.model) == before
    moved = (embeddings(result) - result.prompt.state.start["embeddings"]).abs().amax(dim=1)
    # AdamW moves what has a gradient and, without weight decay, nothing else.
    assert moved.shape == (5,)
    assert float(moved.min()) > 0


def test_a_run_is_repeated_to_the_last_bit_by_its_seed_alone():
    one = learn(seed=1)
    torch.manual_seed(99)
    again, other = learn(seed=1), learn(seed=2)
    assert torch.equal(embeddings(one), embeddings(again))
    assert losses(one) == losses(again)
    assert not torch.equal(one.prompt.state.start["embeddings"], other.prompt.state.start["embeddings"])
    assert not torch.equal(embeddings(one), embeddings(other))


def test_the_seed_orders_the_rows():
    from_text = PromptTuning(tokens=4, init="text", text="the team won the match")
    one, other = (learn(method=from_text, seed=seed) for seed in (1, 2))
    assert torch.equal(one.prompt.state.start["embeddings"], other.prompt.state.start["embeddings"])
    assert not torch.equal(embeddings(one), embeddings(other))


@pytest.mark.parametrize(
    ("task", "rows", "steps", "reached"),
    [
        (TOPICS, ROWS, 30, 0.05),
        (Task(BEHIND, LABELS), ROWS, 60, 0.2),
        (SAME_FIRST_TOKEN, ROWS, 90, 0.1),
        (Task("Article: {text}\nTopic:{soft:8}{label}"), [{**row, "label": "won fell"} for row in ROWS], 60, 0.05),
    ],
    ids=["labels", "behind", "labels of one first token", "generation"],
)
def test_what_can_be_learned_is_learned(task, rows, steps, reached):
    result = learn(decided_backbone(), task, rows, rows, steps=steps, learning_rate=0.1)
    assert losses(result)[0] > 1
    assert result.metrics["loss"] < reached
    assert result.metrics.get("accuracy", result.metrics.get("token_accuracy")) == 1


@pytest.mark.parametrize("loss", ["labels", "vocabulary"])
def test_the_first_loss_is_that_of_the_prompt_it_starts_from(loss):
    result = learn(loss=loss, batch_size=len(ROWS), steps=1)
    backbone, model = tiny.backbone(), reference.plain("llama")
    maker = ExampleMaker(result.prompt.task, backbone.tokenizer)
    start, examples = result.prompt.state.start["embeddings"], tuple(maker.all(ROWS))
    if loss == "vocabulary":
        wanted = reference.loss(model, reference.Case(examples, (start,), (0,) * len(ROWS)))
    else:
        words = [word[0] for word in maker.verbalizer.words]
        logits = torch.stack([reference.logits(model, e, start)[-1, words] for e in examples])
        wanted = F.cross_entropy(logits, torch.tensor([e.label for e in examples]))
    assert losses(result) == [pytest.approx(float(wanted), rel=1e-5)]


def test_the_best_evaluation_is_kept_and_not_the_last():
    # What is learned is the opposite of what is asked: it is forgotten again, step by step.
    train_rows, eval_rows = ([{"text": r["text"], "label": label} for r in ROWS] for label in ("won", "fell"))
    seen = {}
    note = [
        at("on_evaluate", n, lambda m, n=n: seen.setdefault(n, m.parametrization().embeddings.clone()))
        for n in range(1, 9)
    ]
    result = learn(decided_backbone(), WRITING, train_rows, eval_rows, steps=8, eval_every=1, callbacks=note)
    measured = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    best = measured.index(min(measured)) + 1
    assert len(measured) == 8
    assert best < 8
    assert torch.equal(embeddings(result), seen[best].detach())
    assert not torch.equal(embeddings(result), seen[8].detach())
    assert result.metrics["loss"] == pytest.approx(min(measured))


def test_a_better_evaluation_replaces_the_kept_one():
    result = learn(decided_backbone(), eval_rows=ROWS, steps=20, eval_every=1)
    measured = [entry["eval_accuracy"] for entry in result.history if "eval_accuracy" in entry]
    assert measured[0] < max(measured)
    assert result.metrics["accuracy"] == max(measured)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"steps": 5, "eval_every": 2}, [2, 4, 5]),
        ({"steps": 6, "eval_every": 3}, [3, 6]),
        ({"steps": 6}, [2, 4, 6]),
        ({"steps": 2, "eval_every": 9}, [2]),
    ],
)
def test_evaluations_come_when_they_were_asked_for(options, steps):
    result = learn(eval_rows=ROWS, **options)
    assert [entry["step"] for entry in result.history if "eval_loss" in entry] == steps


@pytest.mark.parametrize("eval_rows", [None, []])
def test_without_evaluation_rows_the_last_step_is_kept(eval_rows):
    last = []
    note = at("on_train_end", 6, lambda model: last.append(model.parametrization().embeddings.detach().clone()))
    result = learn(eval_rows=eval_rows, callbacks=[note])
    assert torch.equal(embeddings(result), last[0])
    assert result.metrics == {"train_loss": losses(result)[-1]}


def test_a_hard_prompt_is_measured_and_saved_without_training(tmp_path):
    backbone, task = tiny.backbone(), Task("Article: {text}\nTopic: {label}", LABELS)
    result = learn(backbone, task, ROWS, ROWS, HardPrompt(), output=tmp_path / "hard")
    assert result.history == []
    saved = artifact.load(result.path, backbone)
    assert saved.values.tokens == 0
    assert saved.metrics == result.metrics
    assert {**result.metrics, "rows_cut": 0} == evaluate(backbone, saved, ROWS, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["hard"]


def test_a_hard_prompt_has_no_slot():
    with pytest.raises(TemplateError, match=r"fills no slot.*soft"):
        learn(method=HardPrompt())


def test_a_template_without_a_slot_gets_one_in_front():
    result = learn(task=Task("Article: {text}\nTopic: {label}", LABELS), method=PromptTuning(tokens=3))
    assert result.prompt.task.template.source == "{soft:3}Article: {text}\nTopic: {label}"
    assert embeddings(result).shape == (3, 32)


@pytest.mark.parametrize("template", [FRONT, BEHIND, "Article: {text}\nTopic:{soft:4}{label}"])
def test_reading_texts_again_at_every_step_changes_no_outcome(template):
    task = Task(template, LABELS)
    kept, read_again = (learn(task=task, eval_rows=ROWS, cache_bytes=budget) for budget in (2**30, 0))
    assert kept.prompt.training["texts_not_kept"] == 0
    assert read_again.prompt.training["texts_not_kept"] == (0 if template == FRONT else len(ROWS))
    reference.assert_close(embeddings(read_again), embeddings(kept))
    assert read_again.metrics == pytest.approx(kept.metrics, rel=1e-5)


def test_recomputed_layers_learn_the_same():
    plain = learn(tiny.backbone("gpt2"), TWO_SLOTS, SHORT)
    recomputed = learn(tiny.backbone("gpt2", gradient_checkpointing=True), TWO_SLOTS, SHORT)
    reference.assert_close(embeddings(recomputed), embeddings(plain))


def test_a_backbone_in_bfloat16_is_trained_with_a_prompt_in_float32():
    backbone = Backbone(tiny.model("llama").to(torch.bfloat16), tiny.tokenizer())
    before = {n: t.clone() for n, t in backbone.model.state_dict().items()}
    result = learn(backbone, eval_rows=ROWS, steps=20)
    assert embeddings(result).dtype == torch.float32
    assert result.prompt.dtype == "bfloat16"
    assert losses(result)[-1] < losses(result)[0]
    assert all(torch.equal(t, before[n]) for n, t in backbone.model.state_dict().items())


def test_facts_of_the_run_are_saved_with_the_prompt(tmp_path):
    long = [*ROWS, {"text": "the market fell " * 100, "label": "business"}]
    result = learn(rows=long, eval_rows=ROWS, steps=3, seed=5, output=tmp_path / "p")
    saved = artifact.load(tmp_path / "p", training=True)
    facts = {"steps": 3, "seed": 5, "training_rows": 7, "evaluation_rows": 6, "trained_parameters": 128}
    facts |= {"training_rows_cut": 1, "evaluation_rows_cut": 0}
    assert facts.items() <= saved.training.items()
    assert saved.metrics == result.metrics
    assert torch.equal(saved.values.embeddings, embeddings(result))
    assert torch.equal(saved.state.start["embeddings"], result.prompt.state.start["embeddings"])
    assert torch.equal(saved.state.parameters["embeddings"], embeddings(result))


def test_the_method_has_its_own_learning_rate():
    assert learn(learning_rate=None, steps=1).prompt.training["learning_rate"] == PromptTuning.LEARNING_RATE


def test_without_an_output_nothing_is_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert learn().path is None
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("resume", [False, True])
def test_an_output_that_stands_is_refused_before_any_work(tmp_path, resume):
    first = learn(output=tmp_path / "p")
    before = contents(tmp_path)
    # at the first row it would be the label that is refused.
    with pytest.raises(OutputError, match=r"a prompt stands there.*--overwrite"):
        learn(task=Task(FRONT, ["won", "fell"]), output=first.path, resume=resume)
    assert contents(tmp_path) == before


def test_overwrite_replaces_a_prompt(tmp_path):
    learn(output=tmp_path / "p", seed=1)
    other = learn(output=tmp_path / "p", seed=2, overwrite=True)
    assert torch.equal(artifact.load(tmp_path / "p").values.embeddings, embeddings(other))
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("place", ["folder", "file"])
def test_overwrite_never_replaces_anything_else(tmp_path, place):
    output = tmp_path / "mine"
    (output if place == "file" else output / "thesis.txt").parent.mkdir(exist_ok=True)
    (output if place == "file" else output / "thesis.txt").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="something other than a prompt"):
        learn(output=output, overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_where_checkpoints_would_go_is_left_alone(tmp_path, overwrite):
    (tmp_path / "p.checkpoints").mkdir()
    (tmp_path / "p.checkpoints" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="something other than a training run stands there"):
        learn(output=tmp_path / "p", overwrite=overwrite)
    assert contents(tmp_path) == {"p.checkpoints/thesis.txt": b"years of work"}


def test_an_unknown_setting_is_named():
    with pytest.raises(SettingsError, match=r"no setting step\b.*steps"):
        learn(step=3)


def test_early_stopping_stops():
    class Stuck(EarlyStoppingCallback):
        """As if no evaluation were better than the first."""

        def check_metric_value(self, args, state, control, metric_value):
            self.early_stopping_patience_counter += 1

    result = learn(eval_rows=ROWS, steps=12, eval_every=2, callbacks=[Stuck(early_stopping_patience=2)])
    assert max(entry["step"] for entry in result.history) == 4


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_drawn():
    backbone = tiny.backbone()
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    learn(backbone)
    after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    assert states[:2] == after[:2]
    assert torch.equal(states[2], after[2])


def test_a_second_run_does_not_disturb_the_first(tmp_path):
    def second(model):
        with pytest.raises(OutputError, match="another run is training there"):
            learn(output=tmp_path / "p", overwrite=True)

    result = learn(output=tmp_path / "p", callbacks=[at("on_step_end", 2, second)])
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    assert artifact.load(result.path).training["steps"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": HardPrompt(), "task": Task("{text}{label}", LABELS), "steps": 3}, "takes no steps"),
        ({"resume": True}, "resume: there is no output to go on with"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"batch_size": "3"}, "batch_size is '3'"),
        ({"warmup": "much"}, "warmup is 'much'"),
    ],
)
def test_options_that_would_do_nothing_or_harm_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        learn(**options)
