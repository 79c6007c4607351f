"""Prompts of several seeds: each as if it were alone, and all of them together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import reference
import tiny
from learn.test_methods import METHODS
from learn.test_methods import TASK as PLAIN
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.artifact import PROMPT, TRAINING
from softprompt.collection import SavedPrompts, load_all
from softprompt.errors import DivergenceError, MismatchError, RequestError, SettingsError
from softprompt.learn.evaluation import evaluate
from softprompt.prompts import HardPrompt, PromptTuning
from softprompt.run.vote import choice, mean_log_probabilities
from softprompt.text.task import Task
from toys import (
    BEHIND,
    FRONT,
    LABELS,
    ROWS,
    TOPICS,
    WRITING,
    at,
    contents,
    interrupt,
    learn,
    learn_ensemble,
    learn_together,
    plain_probabilities,
    prompt,
)


def assert_like_alone(result, **options) -> None:
    """Each prompt of an ensemble is what `train` makes of its seed."""
    for name, member in result.prompts.members.items():
        alone = learn(seed=int(name.removeprefix("seed-")), **options).prompt
        assert alone.state.start.keys() == member.state.start.keys()
        assert all(torch.equal(member.state.start[n], t) for n, t in alone.state.start.items())
        mine, theirs = member.values.tensors(), alone.values.tensors()
        assert mine.keys() == theirs.keys()
        for n, tensor in theirs.items():
            torch.testing.assert_close(mine[n], tensor, rtol=1e-5, atol=1e-5)
        # AdamW divides a gradient by its own size: where an encoder's is next to nothing, rounding shows in the step.
        mine, theirs = member.state.parameters, alone.state.parameters
        assert mine.keys() == theirs.keys()
        for n, tensor in theirs.items():
            torch.testing.assert_close(mine[n], tensor, rtol=1e-4, atol=1e-4)
        if "train_loss" not in alone.metrics:  # of an ensemble it is known as the mean alone
            assert member.metrics == pytest.approx(dict(alone.metrics), rel=1e-4)
        assert member.training["seed"] == alone.training["seed"]
        assert member.training["trained_parameters"] == alone.training["trained_parameters"]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_each_prompt_is_what_its_seed_alone_would_have_become(method):
    options = {"task": PLAIN, "method": method, "eval_rows": ROWS[:4], "steps": 5, "learning_rate": 0.01}
    assert_like_alone(learn_ensemble(**options), **options)


@pytest.mark.parametrize("template", [FRONT, BEHIND])
@pytest.mark.parametrize("labels", [LABELS, None], ids=["labels", "writing"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "bloom", "t5"])
def test_wherever_it_stands_and_whatever_it_answers(family, labels, template):
    options = {
        "backbone": reference.backbone(family),
        "task": Task(template, labels),
        "eval_rows": ROWS[:4],
        "learning_rate": 0.02,
    }
    assert_like_alone(learn_ensemble(**options), **options)


def test_gradients_are_clipped_and_the_best_is_kept_for_each_by_itself():
    """Clipped together, or kept by the mean, these would come out otherwise: both matter here."""
    # Half of what is asked is the opposite of what is learned: at some step a prompt is at its best.
    asked = [{**row, "label": LABELS[LABELS.index(row["label"]) ^ (i % 2)]} for i, row in enumerate(ROWS)]
    options = {"eval_rows": asked, "steps": 12, "eval_every": 1, "learning_rate": 0.2, "max_grad_norm": 0.05}
    result = learn_ensemble(seeds=[7, 0, 3], **options)
    assert list(result.prompts.members) == ["seed-7", "seed-0", "seed-3"]
    assert_like_alone(result, **options)
    logged = [entry for entry in result.history if "eval_loss" in entry]
    best = {
        name: max(range(12), key=lambda i: (logged[i][f"eval_{name}.accuracy"], -logged[i][f"eval_{name}.loss"]))
        for name in result.prompts.members
    }
    assert len(set(best.values())) > 1, "one step is the best for all: the test shows nothing"


def test_the_learning_rates_of_groups_hold_for_each():
    options = {"task": PLAIN, "method": METHODS["multitask-rank-2"], "steps": 4, "learning_rate": 0.05}
    assert_like_alone(learn_ensemble(eval_rows=None, **options), **options)


def test_what_is_logged_are_the_means():
    options = {"eval_rows": ROWS, "steps": 4, "eval_every": 2}
    result = learn_ensemble(**options)
    alone = [learn(seed=seed, **options).history for seed in range(3)]
    for metric in ("loss", "eval_loss", "eval_accuracy"):
        mine, *others = ([e[metric] for e in history if metric in e] for history in (result.history, *alone))
        means = [sum(values) / 3 for values in zip(*others, strict=True)]
        assert mine == pytest.approx(means, rel=1e-4)


def test_texts_are_read_once_for_all():
    """Behind the text, a step computes the slot and what follows it, and nothing of the text."""
    backbone, task = tiny.backbone(), Task(BEHIND, LABELS)
    with reference.inputs_of(reference.first_site(backbone)) as alone:
        learn(backbone, task, eval_rows=None)
    with reference.inputs_of(reference.first_site(backbone)) as together:
        learn_ensemble(backbone, task, eval_rows=None)
    # First the hard text in front, then all texts; the rest are steps.
    reading, steps = ([[t.shape for t in calls[part]] for calls in (alone, together)] for part in (_READING, _STEPS))
    assert reading[0] == reading[1]
    assert reading[0][1][0] == len(ROWS)
    assert len(steps[0]) == len(steps[1]) == 6
    assert [shape[0] for shape in steps[1]] == [3 * shape[0] for shape in steps[0]]
    assert [shape[1] for shape in steps[1]] == [shape[1] for shape in steps[0]]


_READING, _STEPS = slice(0, 2), slice(2, None)


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory):
    return learn_ensemble(output=tmp_path_factory.mktemp("ensemble") / "p", steps=12, eval_every=4)


@pytest.mark.parametrize("step", [3, 7, 11, 12])
def test_a_stopped_run_goes_on_to_the_last_bit(tmp_path, ensemble, step):
    options = {"output": tmp_path / "p", "steps": 12, "eval_every": 4}
    with pytest.raises(KeyboardInterrupt):
        learn_ensemble(callbacks=[at("on_step_end", step, interrupt)], **options)
    if step > 5:
        with pytest.raises(SettingsError, match="had another seed"):
            learn_ensemble(resume=True, seeds=[0, 1, 3], **options)
    result = learn_ensemble(resume=True, **options)
    for name in ensemble.prompts.members:
        for file in (PROMPT, TRAINING):
            assert (result.path / name / file).read_bytes() == (ensemble.path / name / file).read_bytes()
    assert dict(result.metrics) == dict(ensemble.metrics)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]


def test_a_prompt_of_an_ensemble_is_begun_from(ensemble):
    one = ensemble.path / "seed-1"
    result = learn(start=one, steps=1)
    assert torch.equal(result.prompt.state.start["embeddings"], artifact.load(one).values.embeddings)
    with pytest.raises(SettingsError, match=r"it takes one prompt, not 3. Give the folder of one"):
        learn(start=ensemble.path, steps=1)


def logs(*rows: tuple[float, ...]) -> torch.Tensor:
    """For each prompt the probabilities of the labels."""
    return torch.tensor(rows).log()


@pytest.mark.parametrize(
    ("each", "vote", "mean"),
    [
        (logs((0.6, 0.4), (0.6, 0.4), (0.01, 0.99)), 0, 1),
        (logs((0.9, 0.1), (0.2, 0.8)), 0, 0),
        (logs((0.7, 0.3), (0.2, 0.8)), 1, 1),
        # Two votes each for the first two; the third, which nobody chooses, has the highest mean.
        (
            logs((0.5, 0.01, 0.49), (0.5, 0.01, 0.49), (0.01, 0.51, 0.48), (0.01, 0.51, 0.48)),
            1,
            2,
        ),
        (logs((1.0, 0.0), (1.0, 0.0)), 0, 0),
    ],
)
def test_a_vote_and_a_mean(each, vote, mean):
    assert int(choice(each)) == vote
    assert int(choice(each, "mean")) == mean
    torch.testing.assert_close(mean_log_probabilities(each).exp(), each.exp().mean(dim=0))
    assert choice(torch.stack([each, each.flip(-1)], dim=1)).tolist() == [vote, each.shape[-1] - 1 - vote]


def disagreeing(count: int = 5) -> SavedPrompts:
    backbone = reference.backbone("llama")
    tasks = [TOPICS, Task(BEHIND, LABELS)]
    return SavedPrompts(
        "ensemble", {f"seed-{s}": prompt(backbone, tasks[s % 2], seed=s, trained=True) for s in range(count)}
    )


@pytest.mark.parametrize("batch_size", [1, 4, 32])
@pytest.mark.parametrize("by", ["vote", "mean"])
def test_the_engine_answers_with_all_at_once(by, batch_size):
    backbone, asked = reference.backbone("llama"), disagreeing()
    engine = Engine(backbone, batch_size=batch_size)
    engine.add("all", asked)
    engine.add("one", asked.members["seed-3"])
    answers = engine.classify([(name, row) for row in ROWS for name in ("all", "one")], by=by)
    each = torch.stack([plain_probabilities("llama", member, ROWS) for member in asked.members.values()])
    votes = F.one_hot(each.argmax(-1), 2).sum(dim=0)
    assert bool((votes.amax(dim=-1) < 5).any()), "they agree: the test shows nothing"
    for number, (row, probabilities) in enumerate(zip(answers[::2], each.mean(dim=0), strict=True)):
        assert list(row.probabilities.values()) == pytest.approx(probabilities.tolist(), rel=1e-4)
        wanted = votes[number] if by == "vote" else probabilities
        assert row.label == LABELS[int(wanted.argmax())]
    for row, probabilities in zip(answers[1::2], each[3], strict=True):
        assert list(row.probabilities.values()) == pytest.approx(probabilities.tolist(), rel=1e-4)


def test_an_ensemble_is_added_by_its_folder_and_removed(ensemble):
    engine = Engine(reference.backbone("llama"))
    engine.add("topic", ensemble.path)
    by_prompts = Engine(reference.backbone("llama"))
    by_prompts.add("topic", ensemble.prompts)
    requests = [("topic", row) for row in ROWS]
    assert engine.classify(requests) == by_prompts.classify(requests)
    assert engine.prompts["topic"].kind == "ensemble"
    with pytest.raises(SettingsError, match="already"):
        engine.add("topic", ensemble.path)
    engine.remove("topic")
    assert not engine.prompts


def test_all_prompts_of_a_request_are_run_in_one_batch():
    engine, asked = Engine(reference.backbone("llama")), disagreeing(4)
    engine.add("all", asked)
    engine.classify([("all", ROWS[1])])
    with reference.inputs_of(reference.first_site(engine.backbone)) as calls:
        engine.classify([("all", ROWS[0])])
    # The text in front of the slots of half of them is read once; then all four at once.
    assert [t.shape[0] for t in calls] == [1, 4]


def test_what_an_ensemble_cannot_do_is_refused_by_name(ensemble, tmp_path):
    engine = Engine(reference.backbone("llama"))
    engine.add("topic", ensemble.path)
    with pytest.raises(RequestError, match=r"request 1 \(topic\): it is an ensemble of 3 prompts.*seed-0"):
        engine.generate([("topic", ROWS[0])])
    with pytest.raises(SettingsError, match=r"by is 'dice'. Use one of vote, mean"):
        engine.classify([("topic", ROWS[0])], by="dice")
    engine.add("one", ensemble.prompts.members["seed-0"])
    for ask in (engine.classify, engine.answer):
        with pytest.raises(
            SettingsError, match=r"by: by is 'mean', but that is how an ensemble .* Leave it out, or ask"
        ):
            ask([("one", ROWS[0])], by="mean")
        assert len(ask([("one", ROWS[0]), ("topic", ROWS[0])], by="mean")) == 2
        assert ask([], by="vote") == []
    with pytest.raises(RequestError, match=r"request 2 \(topic\): field 'text' is missing"):
        engine.classify([("topic", ROWS[0]), ("topic", {})])
    shared = learn_together(distill=0, steps=1, output=tmp_path / "sources")
    for given in (shared.path, shared.prompts):
        with pytest.raises(SettingsError, match=r"it holds the prompts of 2 tasks. Give one: .*/topic, .*/tone"):
            engine.add("sources", given)
    with pytest.raises(SettingsError, match="it holds the prompts of 2 tasks"):
        evaluate(reference.backbone("llama"), shared.prompts, ROWS, progress=False)
    with pytest.raises(MismatchError, match=r"seed-0: .*model fingerprint"):
        Engine(tiny.backbone(seed=1)).add("topic", ensemble.path)


def test_an_ensemble_is_measured_together_and_one_by_one(ensemble):
    backbone, asked = reference.backbone("llama"), disagreeing()
    measured = evaluate(backbone, asked, ROWS, progress=False, batch_size=7)
    each = torch.stack([plain_probabilities("llama", member, ROWS) for member in asked.members.values()])
    truth = torch.tensor([LABELS.index(row["label"]) for row in ROWS])
    votes = F.one_hot(each.argmax(-1), 2).sum(dim=0).argmax(-1)
    right = (each.argmax(-1) == truth).double().mean(dim=1)
    assert len(set(right.tolist())) > 1
    assert measured["accuracy"] == pytest.approx(float((votes == truth).double().mean()))
    mean = each.mean(dim=0)
    assert measured["mean_probability_accuracy"] == pytest.approx(float((mean.argmax(-1) == truth).double().mean()))
    assert measured["loss"] == pytest.approx(float(F.nll_loss(mean.log(), truth)), rel=1e-4)
    assert measured["member_accuracy"] == pytest.approx(float(right.mean()))
    assert [measured[f"seed-{s}.accuracy"] for s in range(5)] == pytest.approx(right.tolist())
    assert measured["rows_cut"] == 0
    saved = evaluate(backbone, load_all(ensemble.path), ROWS, progress=False)
    assert saved == pytest.approx(dict(ensemble.metrics) | {"rows_cut": 0}, rel=1e-5)


def test_an_ensemble_that_writes_is_measured_by_its_members(tmp_path):
    result = learn_ensemble(task=WRITING, output=tmp_path / "p")
    each = [evaluate(reference.backbone("llama"), m, ROWS, progress=False) for m in result.prompts.members.values()]
    assert result.metrics["loss"] == pytest.approx(sum(m["loss"] for m in each) / 3, rel=1e-5)
    measured = evaluate(reference.backbone("llama"), load_all(tmp_path / "p"), ROWS, progress=False)
    assert measured["token_accuracy"] == pytest.approx(sum(m["token_accuracy"] for m in each) / 3)


def test_seeds_are_counted_from_that_of_the_settings():
    assert list(learn_ensemble(seeds=2, seed=5, steps=1, eval_rows=None).prompts.members) == ["seed-5", "seed-6"]


def test_without_rows_to_measure_on_the_last_loss_is_told():
    result = learn_ensemble(eval_rows=None, steps=4)
    assert set(result.metrics) == {"mean_train_loss"}
    assert result.metrics["mean_train_loss"] == [entry["loss"] for entry in result.history if "loss" in entry][-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 1}, "seeds is 1"),
        ({"seeds": 0}, "seeds is 0"),
        ({"seeds": True}, "seeds is True"),
        ({"seeds": [4]}, r"seeds is \[4\]"),
        ({"seeds": [1, 2, 1]}, "a seed stands twice"),
        ({"seeds": [0, -1]}, "seed is -1"),
        ({"seeds": [0, 2**32]}, "seed is 4294967296"),
        ({"seeds": [0, "1"]}, "seed is '1'"),
        ({"method": HardPrompt(), "task": Task("{text}: {label}", LABELS)}, "every seed gives the same"),
        ({"stepz": 1}, "there is no setting stepz"),
        ({"rows": [{"text": "x"}]}, "row 1: field 'label' is missing"),
        ({"method": PromptTuning(init="labels"), "task": WRITING}, "needs a task with label words"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_met_is_refused_and_costs_nothing(ensemble, options, message):
    before = contents(ensemble.path)
    with pytest.raises(RequestError, match=message):
        learn_ensemble(output=ensemble.path, overwrite=True, **options)
    assert contents(ensemble.path.parent) == {f"p/{name}": content for name, content in before.items()}


def test_one_that_diverges_ends_the_run_and_all_are_saved(tmp_path):
    def spoil(model) -> None:
        next(model.parametrization.parts()[1].parameters()).data.fill_(float("nan"))

    with pytest.raises(DivergenceError, match=r"nan at step 4; the prompts before it are in .*p\.last-good"):
        learn_ensemble(output=tmp_path / "p", callbacks=[at("on_step_begin", 3, spoil)])
    left = load_all(tmp_path / "p.last-good", reference.backbone("llama"))
    assert all(bool(torch.isfinite(m.values.embeddings).all()) for m in left.members.values())


def test_prompts_of_other_labels_are_no_ensemble():
    asked = disagreeing(2)
    other = replace(asked.first, task=Task(FRONT, ["won", "fell"]))
    with pytest.raises(RequestError, match="do not have one list of labels"):
        replace(asked, members={**asked.members, "seed-9": other})
