"""Several tasks that share a part: batches, teachers, sampling, and what a target begins from."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import reference
import tiny
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.artifact import PROMPT, TRAINING
from softprompt.backbone.backbone import Backbone
from softprompt.collection import COLLECTION, load_all
from softprompt.errors import DataError, DivergenceError, MismatchError, OutputError, RequestError, SettingsError
from softprompt.learn.distillation import Teachers
from softprompt.learn.evaluation import evaluate
from softprompt.learn.losses import loss_for
from softprompt.learn.objective import Objective
from softprompt.learn.order import Mixed
from softprompt.learn.settings import Settings
from softprompt.learn.sources import Source
from softprompt.learn.trainer import LearnerTrainer
from softprompt.learn.training import host
from softprompt.prompts import MultitaskPromptTuning, PrefixTuning, PromptTuning
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Forward
from softprompt.run.maker import example_maker
from softprompt.text.task import Task
from toys import (
    FRONT,
    LABELS,
    ROWS,
    TONE_ROWS,
    TONES,
    TOPICS,
    WRITING,
    answered,
    at,
    contents,
    interrupt,
    learn,
    learn_together,
    task_of,
)
from toys import sources as two

TASKS = {"topic": TOPICS, "tone": TONES, "writing": WRITING}
run = partial(learn_together, steps=12, eval_every=4)


class Bench:
    """Three tasks of one family of backbones, with factors that have gone ways of their own."""

    def __init__(self, family: str) -> None:
        self.backbone = reference.backbone(family)
        self.makers = [example_maker(self.backbone, t) for t in TASKS.values()]
        rows = [ROWS[:3], TONE_ROWS[:2], ROWS[3:5]]
        self.examples = [maker.all(own) for maker, own in zip(self.makers, rows, strict=True)]
        self.losses = [loss_for(Settings(), maker.task, maker.verbalizer) for maker in self.makers]
        self.forward = Forward(self.backbone)

    def parametrization(self):
        generator = torch.Generator().manual_seed(0)
        made = MultitaskPromptTuning(rank=2).build_for(3, 4, host(self.backbone, self.makers), generator)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        return made

    def objective(self, more=None) -> Objective:
        return Objective(self.forward, self.losses, more)

    @property
    def rows(self):
        """Tasks alternating, as no step would have them."""
        order = [(0, 0), (2, 0), (1, 0), (0, 1), (1, 1), (2, 1), (0, 2)]
        return [(task, self.examples[task][i]) for task, i in order]


def gradients(parametrization) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in parametrization.named_parameters()}


# Tiny encoders answer in no template of these; what is said of decoders holds of whatever reads its own rows.
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "bloom", "t5", "bart"])
def test_one_batch_of_several_tasks_is_each_alone(family):
    bench = Bench(family)
    together = bench.parametrization()
    loss = bench.objective()(together, bench.rows)
    loss.backward()
    alone = bench.parametrization()
    total = torch.zeros(())
    for task, own in enumerate(bench.examples):
        part = bench.objective()(alone, [(task, example) for example in own]) * len(own) / len(bench.rows)
        part.backward()
        total += part.detach()
    reference.assert_close(loss.detach(), total)
    for name, gradient in gradients(alone).items():
        assert bool((gradient != 0).any()), f"{name} is not learned"
        reference.assert_close(gradients(together)[name], gradient)


def plain(family: str, example, prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[S, V]` and last hidden states `[S, D]` of an answer, by a model that was never taken in."""
    model = reference.plain(family)
    if model.config.is_encoder_decoder:
        start = [reference.backbone(family).decoder_start]
        decoder = torch.tensor([[*start[0], *example.target[:-1]]])
        output = model(
            inputs_embeds=reference.embeds(model, example.tokens, prompt),
            decoder_input_ids=decoder,
            output_hidden_states=True,
        )
        logits, states = output.logits[0], output.decoder_hidden_states[-1][0]
    else:
        sequence = reference.embeds(model, (*example.tokens, *example.target[:-1]), prompt)
        output = model(inputs_embeds=sequence, output_hidden_states=True, use_cache=False)
        logits, states = output.logits[0], output.hidden_states[-1][0]
    return logits[-len(example.target) :], states[-len(example.target) :]


def taught_by(values: VirtualTokens) -> SimpleNamespace:
    """What is looked at of a teacher."""
    return SimpleNamespace(values=values, head=None)


def distilled(bench: Bench, family: str, students, teachers, weight: float) -> torch.Tensor:
    """What teachers add to the loss, row by row and written out."""
    total, count = torch.zeros(()), len(bench.rows)
    for task, own in enumerate(bench.examples):
        divergences, errors = [], []
        for example in own:
            logits, states = plain(family, example, students[task])
            taught_logits, taught_states = plain(family, example, teachers[task])
            words = bench.losses[task].words
            if words is not None:
                logits, taught_logits = logits[:, list(words)], taught_logits[:, list(words)]
            p, q = taught_logits.softmax(-1), logits.softmax(-1)
            divergences += (p * (p / q).log()).sum(-1)
            errors += ((states - taught_states) ** 2).mean(-1)
        total = total + len(own) / count * (torch.stack(divergences).mean() + torch.stack(errors).mean())
    return weight * total


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "t5", "bart"])
def test_what_teachers_add_is_what_the_paper_writes(family):
    bench = Bench(family)
    made = bench.parametrization()
    generator = torch.Generator().manual_seed(5)
    scale = float(bench.backbone.embeddings.std())
    taught = [scale * torch.randn(4, bench.backbone.hidden_size, generator=generator) for _ in TASKS]
    same = [{example: example for example in own} for own in bench.examples]
    teachers = Teachers(bench.forward, [taught_by(VirtualTokens(t)) for t in taught], same, bench.losses, 0.7)
    without = bench.objective()(made, bench.rows)
    (bench.objective(teachers)(made, bench.rows) - without).backward()
    got = gradients(made)
    assert all(t.grad is None for t in taught)
    made.zero_grad()
    wanted = distilled(bench, family, [made(k).embeddings for k in range(3)], taught, 0.7)
    wanted.backward()
    added = bench.objective(teachers)(made, bench.rows) - without
    assert float(wanted.detach()) > 0.01
    assert float(added.detach()) == pytest.approx(float(wanted.detach()), rel=2e-5)
    for name, gradient in gradients(made).items():
        reference.assert_close(got[name], gradient, 1e-4)


def test_a_student_like_its_teacher_has_nothing_to_learn_from_it():
    bench = Bench("llama")
    made = bench.parametrization()
    taught = [taught_by(VirtualTokens(made(k).embeddings.detach())) for k in range(3)]
    same = [{example: example for example in own} for own in bench.examples]
    teachers = Teachers(bench.forward, taught, same, bench.losses, 0.9)
    added = bench.objective(teachers)(made, bench.rows) - bench.objective()(made, bench.rows)
    assert float(added.detach()) == pytest.approx(0, abs=1e-6)


def mixed(sizes, batch_size=16, seed=0, limit=2**18) -> Mixed:
    return Mixed([[(k, i) for i in range(size)] for k, size in enumerate(sizes)], batch_size, seed, limit)


def test_each_step_has_rows_of_two_to_all_tasks():
    draw = mixed([50, 60, 70, 80])
    counts = Counter(len({task for task, _ in draw(step)}) for step in range(300))
    assert counts.keys() == {2, 3, 4}
    assert all(70 < count < 130 for count in counts.values()), counts  # a third each
    chosen = Counter(task for step in range(300) for task in {task for task, _ in draw(step)})
    assert all(190 < count < 260 for count in chosen.values()), chosen  # each in three quarters
    assert all(len(draw(step)) == 16 for step in range(300))


@pytest.mark.parametrize(("limit", "share"), [(2**18, 0.75), (100, 0.5), (200, 2 / 3)])
def test_the_rows_of_a_step_are_divided_by_mixing_rates(limit, share):
    draw = mixed([300, 100], batch_size=12, limit=limit)
    for step in range(20):
        assert Counter(task for task, _ in draw(step)) == {0: round(12 * share), 1: 12 - round(12 * share)}


def test_a_small_task_is_not_left_out():
    draw = mixed([100_000, 1, 2], batch_size=4)
    for step in range(30):
        shares = Counter(task for task, _ in draw(step))
        assert sum(shares.values()) == 4
        assert 0 not in shares or all(shares[task] == 1 for task in shares if task)


def test_every_row_of_a_task_comes_once_an_epoch():
    draw = mixed([12, 20, 8], batch_size=5)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in range(100):
        for task, row in draw(step):
            seen[task].append(row)
    orders = set()
    for task, size in enumerate([12, 20, 8]):
        epochs = [seen[task][i : i + size] for i in range(0, len(seen[task]) - size, size)]
        assert len(epochs) > 5
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        orders |= {tuple(epoch) for epoch in epochs}
    assert len(orders) > 15, "each epoch has an order of its own"


def test_tasks_of_one_size_have_orders_of_their_own():
    draw = mixed([40, 40], batch_size=40)
    first, second = ([row for task, row in draw(0) if task == k] for k in (0, 1))
    assert first != second


def test_a_step_is_decided_by_seed_and_number_alone():
    steps = [mixed([5, 6, 7])(step) for step in range(9)]
    backwards = mixed([5, 6, 7])
    assert [backwards(step) for step in reversed(range(9))] == steps[::-1]
    assert [mixed([5, 6, 7], seed=1)(step) for step in range(9)] != steps


def assert_same(result, straight) -> None:
    for name in straight.prompts.members:
        for file in (PROMPT, TRAINING):
            assert (result.path / name / file).read_bytes() == (straight.path / name / file).read_bytes()
    assert dict(result.metrics) == dict(straight.metrics)
    metrics = [{n: dict(m.metrics) for n, m in r.prompts.members.items()} for r in (result, straight)]
    assert metrics[0] == metrics[1]
    steps = [[entry for entry in r.history if "train_runtime" not in entry] for r in (result, straight)]
    assert steps[0] == steps[1]
    assert sorted(p.name for p in result.path.parent.iterdir()) == [result.path.name]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The outcome of a run that nobody stopped."""
    return run(output=tmp_path_factory.mktemp("straight") / "p")


@pytest.mark.parametrize("step", [3, 5, 7, 11, 12])
def test_a_stopped_run_goes_on_to_the_last_bit(tmp_path, straight, step):
    with pytest.raises(KeyboardInterrupt):
        run(output=tmp_path / "p", callbacks=[at("on_step_end", step, interrupt)])
    assert not (tmp_path / "p").exists()
    assert_same(run(output=tmp_path / "p", resume=True), straight)


@pytest.mark.parametrize(
    ("step", "made_again"),
    [(7, [6, 1, 1]), (11, [11, 1, 1]), (12, [11, 1, 1]), (15, [None, 1, 1]), (19, [None, 6, 1])],
)
def test_a_run_that_was_stopped_while_a_teacher_learned_goes_on(tmp_path, straight, monkeypatch, step, made_again):
    """Twelve steps of a teacher, twelve of the other, twelve of the students; checkpoints after 5, 10 and 12."""
    count, compute_loss = 0, LearnerTrainer.compute_loss

    def stop_at(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == step:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LearnerTrainer, "compute_loss", stop_at)
        with pytest.raises(KeyboardInterrupt):
            run(output=tmp_path / "p")
    with pytest.raises(OutputError, match="an interrupted run stands there"):
        run(output=tmp_path / "p")
    first: list[int] = []
    before = LearnerTrainer.run

    def note(self, checkpoint):
        first.append(1 if checkpoint is None else int(checkpoint.name.partition("-")[2]) + 1)
        before(self, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(LearnerTrainer, "run", note)
        result = run(output=tmp_path / "p", resume=True)
    assert first == [number for number in made_again if number is not None]
    assert_same(result, straight)


@pytest.mark.parametrize(
    ("difference", "named"),
    [
        ({"distill": 0.5}, "distill"),
        ({"mixing_limit": 3}, "mixing_limit"),
        ({"teacher_steps": 3}, "teacher_steps"),
        ({"teacher_learning_rate": 0.3}, "teacher_learning_rate"),
        ({"steps": 13}, "steps, teacher_steps"),
        ({"method": MultitaskPromptTuning(tokens=4, factor_rate=2)}, "topic's method's factor_rate"),
        ({"tasks": {**two(), "tone": replace(two()["tone"], rows=TONE_ROWS[::-1])}}, "tone's training rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_is_refused_and_what_differs_is_named(tmp_path, difference, named):
    with pytest.raises(KeyboardInterrupt):
        run(output=tmp_path / "p", callbacks=[at("on_step_end", 6, interrupt)])
    before = contents(tmp_path / "p.checkpoints")
    with pytest.raises(SettingsError, match=f"had another {named}"):
        run(output=tmp_path / "p", resume=True, **difference)
    assert contents(tmp_path / "p.checkpoints") == before


@pytest.mark.parametrize("family", [*tiny.FAMILIES, "t5", "bart"])
def test_the_backbone_stays_and_everything_else_moves(family):
    backbone = tiny.backbone(family)
    before = reference.state(backbone.model)
    result = learn_together(backbone, two(measured=False), steps=8, teacher_steps=2, learning_rate=0.01)
    assert reference.state(backbone.model) == before
    for member in result.prompts.members.values():
        # As many vectors as the slots ask for: there is none for the decoder, that `generate` would not see.
        assert member.values.embeddings.shape == (4, backbone.hidden_size)
        assert bool((member.values.embeddings != member.state.start["embeddings"]).any(dim=1).all())
        left, right = member.state.parameters["left.0"], member.state.parameters["right.0"]
        assert bool((left != 1).all())
        assert bool((right != 1).all())
    topic, tone = (m.state.parameters for m in result.prompts.members.values())
    assert torch.equal(topic["shared"], tone["shared"])
    assert not torch.equal(topic["left.0"], tone["left.0"])


def test_every_member_is_served_as_it_was_measured(tmp_path):
    backbone = reference.backbone("llama")
    result = learn_together(backbone, output=tmp_path / "p", steps=9, eval_every=2)
    engine = Engine(backbone)
    requests = []
    for name, source in two().items():
        loaded = artifact.load(tmp_path / "p" / name, backbone, training=True)
        measured = evaluate(backbone, loaded, source.eval_rows, progress=False)
        assert measured["loss"] == pytest.approx(result.prompts.members[name].metrics["loss"], rel=1e-5)
        engine.add(name, tmp_path / "p" / name)
        requests += [(name, row) for row in source.rows]
    answers = engine.classify(requests)
    for request, answer in zip(requests, answers, strict=True):
        (alone,) = engine.classify([request])
        assert alone.probabilities == pytest.approx(answer.probabilities, rel=1e-4)


def test_the_state_with_the_best_mean_is_kept_for_all_tasks():
    result = learn_together(steps=12, eval_every=1, learning_rate=0.3)
    logged = [entry for entry in result.history if "eval_accuracy" in entry]
    assert len(logged) == 12
    for entry in logged:
        for metric in ("accuracy", "loss"):
            each = [entry[f"eval_{name}.{metric}"] for name in two()]
            assert entry[f"eval_{metric}"] == pytest.approx(sum(each) / 2)
    best = max(logged, key=lambda entry: (entry["eval_accuracy"], -entry["eval_loss"]))
    assert best["eval_loss"] > min(entry["eval_loss"] for entry in logged) or best is not logged[-1]
    assert result.metrics["accuracy"] == best["eval_accuracy"]
    assert result.metrics["loss"] == best["eval_loss"]
    for name, member in result.prompts.members.items():
        assert member.metrics["loss"] == best[f"eval_{name}.loss"]


def test_tasks_of_different_kinds_are_kept_by_their_losses():
    tasks = {"topic": two()["topic"], "writing": Source(WRITING, ROWS, ROWS[:3])}
    result = learn_together(tasks=tasks, steps=6, eval_every=1)
    assert set(result.metrics) == {"loss"}
    assert result.metrics["loss"] == min(entry["eval_loss"] for entry in result.history if "eval_loss" in entry)
    assert "accuracy" in result.prompts.members["topic"].metrics
    assert "perplexity" in result.prompts.members["writing"].metrics


def test_a_teacher_that_is_given_is_the_one_that_would_be_trained(tmp_path):
    trained = learn_together(teacher_steps=5)
    usual = {"method": PromptTuning(tokens=4), "steps": 5, "batch_size": 4, "learning_rate": 0.1}
    topic = learn(task=TOPICS, rows=ROWS, eval_rows=ROWS[:4], **usual)
    tone = learn(task=TONES, rows=TONE_ROWS, eval_rows=TONE_ROWS[:3], output=tmp_path / "tone", **usual)
    tasks = two()
    tasks = {
        "topic": replace(tasks["topic"], teacher=topic.prompt),
        "tone": replace(tasks["tone"], teacher=tone.path),
    }
    given = learn_together(tasks=tasks)
    for name, member in trained.prompts.members.items():
        assert torch.equal(given.prompts.members[name].values.embeddings, member.values.embeddings)
    assert given.prompts.training["teachers"] == {"topic": dict(topic.metrics), "tone": dict(tone.metrics)}


def test_teachers_matter_and_can_be_left_out(tmp_path):
    members = {
        name: learn_together(**options, output=tmp_path / name).prompts.members["topic"].values.embeddings
        for name, options in {"none": {"distill": 0}, "some": {}, "more": {"distill": 9}}.items()
    }
    assert not torch.equal(members["none"], members["some"])
    assert not torch.equal(members["some"], members["more"])
    assert load_all(tmp_path / "none").training["teachers"] == {}


def test_a_teacher_of_another_method_and_template_teaches():
    """It reads the same rows in its own way; only the answer must be written alike."""
    teacher = learn(
        task=Task("Which topic has {text} ?\nTopic: {label}", LABELS), method=PrefixTuning(tokens=2), learning_rate=0.01
    ).prompt
    tasks = two()
    result = learn_together(tasks={**tasks, "topic": replace(tasks["topic"], teacher=teacher)})
    other = learn_together(tasks=tasks)
    assert not torch.equal(*(r.prompts.members["topic"].values.embeddings for r in (result, other)))


def test_a_student_learns_from_its_teacher_what_its_rows_do_not_say():
    """All the rows are about one label; the teacher knows both."""
    knowing = learn(task=TOPICS, rows=ROWS, steps=40).prompt
    one_sided = [row for row in ROWS if row["label"] == "sports"]
    hidden = [row for row in ROWS if row["label"] == "business"]
    found = {}
    for distill in (0.0, 200.0):
        teacher = knowing if distill else None
        tasks = {
            "topic": Source(TOPICS, one_sided, teacher=teacher),
            "again": Source(TOPICS, one_sided, teacher=teacher),
        }
        student = learn_together(tasks=tasks, distill=distill, steps=60).prompts.members["topic"]
        found[distill] = evaluate(reference.backbone("llama"), student, hidden, progress=False)["loss"]
    assert found[200.0] < found[0.0] / 2


def other_backbone() -> Backbone:
    return tiny.backbone(seed=1)


REFUSED = {
    "one source": ({"tasks": {"topic": two()["topic"]}}, "sources: there is one source"),
    "another method": ({"method": PromptTuning(tokens=4)}, "prompt-tuning prompts have nothing in common"),
    "a name": ({"tasks": {"a/b": two()["topic"], "tone": two()["tone"]}}, "'a/b' cannot be the name of a folder"),
    "too small a batch": ({"batch_size": 1}, r"batch_size is 1, but a step may hold rows of all 2 sources"),
    "lengths": (
        {"tasks": {**two(), "long": Source(Task("{soft:5}{text}{soft:2}: {label}"), ROWS)}},
        "source long: its slots have 7 virtual tokens together, those of topic have 4",
    ),
    "a row": (
        {"tasks": {**two(), "tone": Source(TONES, [*TONE_ROWS, {"text": "x"}])}},
        "source tone, row 5: field 'label' is missing",
    ),
    "an evaluation row": (
        {"tasks": {**two(), "tone": Source(TONES, TONE_ROWS, [{"text": "x", "label": "grey"}])}},
        "source tone, row 1: unknown label 'grey'",
    ),
    "no row": ({"tasks": {**two(), "tone": Source(TONES, [])}}, "source tone: there is no row"),
    "some measured": (
        {"tasks": {**two(), "tone": Source(TONES, TONE_ROWS)}},
        "source tone: it has no rows to measure on, others have",
    ),
    "distill": ({"distill": -1}, "distill is -1"),
    "no distill": ({"distill": float("nan")}, "distill is nan"),
    "mixing limit": ({"mixing_limit": 0}, "mixing_limit is 0"),
    "teacher's steps": ({"teacher_steps": 0}, "teacher_steps: steps is 0"),
    "teacher's rate": ({"teacher_learning_rate": -1.0}, "teacher_learning_rate: learning_rate is -1"),
    "steps of no teacher": ({"distill": 0, "teacher_steps": 3}, "teacher_steps: .*distill is 0"),
    "no such setting": ({"stepz": 3}, "there is no setting stepz"),
    "nothing to resume": ({"resume": True}, "there is no output to go on with"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_met_is_refused_by_name(options, message):
    with pytest.raises(RequestError, match=message):
        learn_together(**options)


def test_a_teacher_that_does_not_fit_is_refused_by_name(tmp_path):
    tasks = two()

    def taught(teacher, **options):
        return learn_together(tasks={**tasks, "topic": replace(tasks["topic"], teacher=teacher)}, **options)

    one = learn(steps=1).prompt
    with pytest.raises(SettingsError, match="teachers are given, but distill is 0"):
        taught(one, distill=0)
    with pytest.raises(MismatchError, match=r"the teacher of topic: .*model fingerprint"):
        taught(learn(other_backbone(), steps=1).prompt)
    with pytest.raises(SettingsError, match=r"the teacher of topic: its task has labels \['good', 'bad'\]"):
        taught(learn(task=TONES, rows=TONE_ROWS, steps=1).prompt)
    with pytest.raises(SettingsError, match=r"the teacher of topic: it answers row 1 in other tokens"):
        taught(learn(task=Task("{soft:4}{text}:{label}", LABELS), steps=1).prompt)
    titled = learn(task=Task("{soft:4}{title}{text}: {label}", LABELS), rows=[{**r, "title": "x"} for r in ROWS])
    with pytest.raises(DataError, match=r"the teacher of topic, row 1: field 'title' is missing"):
        taught(titled.prompt)
    with pytest.raises(RequestError, match="nowhere: there is no such folder"):
        taught(tmp_path / "nowhere", output=tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_the_last_good_prompts_are_saved_when_the_loss_is_no_number(tmp_path):
    def spoil(model) -> None:
        model.parametrization.shared.data.fill_(float("nan"))

    with pytest.raises(DivergenceError, match=r"nan at step 4; the prompts before it are in .*p\.last-good"):
        learn_together(output=tmp_path / "p", callbacks=[at("on_step_begin", 3, spoil)])
    left = load_all(tmp_path / "p.last-good", reference.backbone("llama"), training=True)
    assert all(bool(torch.isfinite(m.values.embeddings).all()) for m in left.members.values())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.last-good"]


def test_a_teacher_whose_loss_is_no_number_is_named(tmp_path):
    with pytest.raises(DivergenceError, match=r"the teacher of topic: the "):
        learn_together(tiny.backbone("gpt2"), output=tmp_path / "p", teacher_learning_rate=1e30, steps=9)
    assert not (tmp_path / "p").exists()
    assert not list(tmp_path.rglob("*.last-good"))


def test_bad_input_costs_nothing_that_stood_there(tmp_path):
    learn_together(output=tmp_path / "p", distill=0, steps=1)
    before = contents(tmp_path)
    for options, message in REFUSED.values():
        if "resume" not in options:
            with pytest.raises(RequestError, match=message):
                learn_together(**{"output": tmp_path / "p", "overwrite": True, **options})
    with pytest.raises(OutputError, match="prompts stand there"):
        learn_together(output=tmp_path / "p")
    assert contents(tmp_path) == before


# What a target begins from.


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return learn_together(output=tmp_path_factory.mktemp("shared") / "sources", method=MultitaskPromptTuning(rank=2))


def adapt(start, **options):
    settings = {"method": MultitaskPromptTuning(tokens=4, rank=2), "steps": 1, "learning_rate": 1e-12} | options
    return learn(task=Task(FRONT, ["won", "fell"]), rows=[{"text": "x", "label": "won"}], start=start, **settings)


@pytest.mark.parametrize("given", ["folder", "prompts"])
def test_a_target_begins_from_all_sources(shared, given):
    members = [m.state.parameters for m in shared.prompts.members.values()]
    result = adapt(shared.path if given == "folder" else shared.prompts)
    left, right = (torch.stack([m[name] for m in members]).mean(dim=0) for name in ("left.0", "right.0"))
    torch.testing.assert_close(result.prompt.state.start["embeddings"], members[0]["shared"] * (left @ right))
    assert result.prompt.training["trained_parameters"] == 4 * 32 + 2 * (4 + 32)
    torch.testing.assert_close(result.prompt.values.embeddings, result.prompt.state.start["embeddings"])


def test_a_target_begins_from_one_source(shared):
    result = adapt(shared.path / "tone")
    assert torch.equal(
        result.prompt.state.start["embeddings"], shared.prompts.members["tone"].values.tensors()["embeddings"]
    )


def test_a_target_needs_its_sources_no_longer(shared, tmp_path):
    folder = shutil.copytree(shared.path, tmp_path / "sources")
    first = adapt(folder, output=tmp_path / "target", steps=3, learning_rate=0.1)
    shutil.rmtree(folder)
    backbone = reference.backbone("llama")
    engine = Engine(backbone)
    engine.add("target", tmp_path / "target")
    assert engine.classify([("target", {"text": "x"})])[0].label in ("won", "fell")
    again = adapt(tmp_path / "target")
    assert torch.equal(again.prompt.state.start["embeddings"], first.prompt.values.embeddings)


def test_a_run_from_sources_goes_on_to_the_last_bit(shared, tmp_path):
    settings = {"steps": 7, "learning_rate": 0.1}
    straight = adapt(shared.path, output=tmp_path / "straight", **settings)
    with pytest.raises(KeyboardInterrupt):
        adapt(shared.path, output=tmp_path / "p", callbacks=[at("on_step_end", 6, interrupt)], **settings)
    with pytest.raises(SettingsError, match="had another start"):
        adapt(shared.path / "topic", output=tmp_path / "p", resume=True, **settings)
    resumed = adapt(shared.path, output=tmp_path / "p", resume=True, **settings)
    for file in (PROMPT, TRAINING):
        assert (resumed.path / file).read_bytes() == (straight.path / file).read_bytes()


def test_two_learning_rates_move_two_groups():
    """AdamW's first step moves every number by its learning rate, whatever the gradient."""
    result = learn(
        method=MultitaskPromptTuning(tokens=4, factor_rate=3),
        steps=1,
        learning_rate=1e-3,
        schedule="constant",
        warmup=0.0,
    )
    parameters = result.prompt.state.parameters
    moved = (parameters["shared"] - result.prompt.state.start["embeddings"]).abs()
    assert moved.median() == pytest.approx(1e-3, rel=1e-2)
    for name in ("left.0", "right.0"):
        assert (parameters[name] - 1).abs().median() == pytest.approx(3e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": MultitaskPromptTuning(rank=1)}, "sources: its rank is 2, that asked for 1"),
        ({"method": PromptTuning(tokens=4)}, "sources: it is a multitask prompt, not prompt-tuning"),
        ({"backbone": tiny.backbone(seed=1)}, "sources/topic: .*model fingerprint"),
        ({"task": Task("{soft:9}{text}: {label}", ["won", "fell"])}, r"sources: its P \(virtual tokens\) is 4, .*9"),
    ],
)
def test_sources_that_do_not_fit_are_refused_by_name(shared, options, message):
    given = {"task": Task(FRONT, ["won", "fell"]), "method": MultitaskPromptTuning(rank=2)} | options
    with pytest.raises(RequestError, match=message):
        learn(rows=[{"text": "x", "label": "won"}], start=shared.path, **given)


def test_sources_without_their_parameters_are_refused(shared, tmp_path):
    folder = shutil.copytree(shared.path, tmp_path / "sources")
    (folder / "tone" / TRAINING).unlink()
    with pytest.raises(RequestError, match=f"tone/{TRAINING}: the file is missing"):
        adapt(folder)
    assert load_all(folder).kind == "sources"
    assert (folder / COLLECTION).is_file()


def test_what_is_read_on_two_sides_of_an_encoder_decoder_is_no_batch():
    backbone = reference.backbone("t5")
    tasks = {
        kind: Source(task_of(kind, backbone), [answered(kind, row) for row in ROWS])
        for kind in ("classification", "token-classification")
    }
    with pytest.raises(SettingsError, match=r"which cannot be one batch: classification \(classification\), token"):
        learn_together(backbone, tasks, distill=0)
