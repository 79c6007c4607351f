"""What teachers add to the loss of each kind of task; of answers in words see `test_sources.py`, too."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import reference
import toys
from softprompt.learn.distillation import Teachers
from softprompt.learn.losses import loss_for
from softprompt.learn.settings import Settings
from softprompt.learn.sources import Source
from softprompt.learn.training import host
from softprompt.prompts import MultitaskPromptTuning, PromptTuning
from softprompt.prompts.head import Head, Headed
from softprompt.prompts.several import Several
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task
from toys import ROWS, answered, learn_together, pairs, rows_of, task_of

NEW = [p for p in pairs("llama", "gpt2", "bert", "t5", "bart") if p[1] not in ("generation", "classification")]


class Bench:
    """One task: a student, a teacher that reads its rows in a template of another length, and both of their rows."""

    def __init__(self, family: str, kind: str) -> None:
        self.family, self.kind, self.backbone = family, kind, reference.backbone(family)
        tasks = task_of(kind, self.backbone), task_of(kind, self.backbone, soft="{soft:3}Answer: ")
        self.makers = [example_maker(self.backbone, task) for task in tasks]
        self.mine, self.theirs = (maker.all(rows_of(kind)) for maker in self.makers)
        self.teacher = toys.prompt(self.backbone, tasks[1], seed=3)
        self.loss = loss_for(Settings(), tasks[0], self.makers[0].verbalizer)
        self.forward = Forward(self.backbone)

    def student(self) -> Headed:
        generator = torch.Generator().manual_seed(0)
        made = PromptTuning().build(4, host(self.backbone, self.makers), generator)
        with torch.no_grad():
            made().at_input.add_(0.3 * torch.randn(4, self.backbone.hidden_size, generator=generator))
        head = toys.head(self.backbone, self.makers[0].task, seed=1)
        return Headed(made, [None if head is None else head.requires_grad_()])

    def added(self, student: Headed, teacher: SavedPrompt, theirs) -> Tensor:
        """What the teacher adds to the loss of all rows, weight 0.7."""
        teachers = Teachers(self.forward, [teacher], [dict(zip(self.mine, theirs, strict=True))], [self.loss], 0.7)
        answers = self.forward.answers(self.mine, [Filling(student())], head=self.loss.IN_WORDS)
        return teachers(answers, [(0, example) for example in self.mine], student)

    def written_out(self, student: Headed) -> Tensor:
        """The same, row by row, by a model that was never taken in."""
        divergences, errors = [], []
        for mine, theirs in zip(self.mine, self.theirs, strict=True):
            states, logits = self._plain(mine, student().at_input)
            taught_states, taught_logits = self._plain(theirs, self.teacher.values.at_input)
            if self.kind == "feature-extraction":
                errors.append((states.mean(0) - taught_states.mean(0)) ** 2)
                continue
            errors += (states - taught_states) ** 2
            q, p = (self._chosen(*found) for found in self._read(student, states, logits, taught_states, taught_logits))
            divergences += [(t * (t / s).log()).sum() for s, t in zip(q, p, strict=True)]
        error = torch.stack(errors).mean()
        return 0.7 * (error if self.kind == "feature-extraction" else error + torch.stack(divergences).mean())

    def _plain(self, example, prompt: Tensor) -> tuple[Tensor, Tensor | None]:
        return reference.answer(reference.plain(self.family), self.backbone, example, prompt)

    def _read(self, student: Headed, states, logits, taught_states, taught_logits):
        return (states, logits, student.head_for()), (taught_states, taught_logits, self.teacher.head)

    def _chosen(self, states: Tensor, logits: Tensor | None, head: Head | None) -> list[Tensor]:
        """The probabilities of each choice that a row's answer is."""
        if self.kind == "multi-label":
            verbalizer = self.makers[0].verbalizer
            pairs = [logits[-1, [word[0], verbalizer.none[0]]] for word in verbalizer.words]
            return [pair.exp() / pair.exp().sum() for pair in pairs]
        outputs = states @ head.weight.T + head.bias
        # A beginning and an end, each among all the tokens of the field; else a label for each state that is read.
        return [F.softmax(own, dim=0) for own in (outputs.T if self.kind == "question-answering" else outputs)]


def gradients(student: Headed) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in student.named_parameters()}


@pytest.mark.parametrize(("family", "kind"), NEW)
def test_what_a_teacher_adds_is_its_formula_and_reaches_the_student_alone(family, kind):
    bench = Bench(family, kind)
    student, other = bench.student(), bench.student()
    if kind in ("token-classification", "question-answering"):
        assert len({len(e.target) for e in bench.mine}) > 1, "rows of one length are not padded"
    added, wanted = bench.added(student, bench.teacher, bench.theirs), bench.written_out(other)
    assert float(wanted.detach()) > 0.01
    assert float(added.detach()) == pytest.approx(float(wanted.detach()), rel=2e-5)
    tensors = [
        bench.teacher.values.embeddings,
        *(() if bench.teacher.head is None else bench.teacher.head.parameters()),
    ]
    for tensor in tensors:
        tensor.requires_grad_()
    bench.added(student, bench.teacher, bench.theirs).backward()
    assert all(tensor.grad is None for tensor in tensors)
    wanted.backward()
    for name, gradient in gradients(student).items():
        if kind == "question-answering" and name.endswith("bias"):
            continue  # one number for all the tokens decides between none of them
        assert bool(gradient.any()), f"{name} learns nothing"
        reference.assert_close(gradient, dict(other.named_parameters())[name].grad, 1e-4)


@pytest.mark.parametrize(("family", "kind"), [p for p in NEW if p[0] in ("llama", "bert", "t5")])
def test_a_student_like_its_teacher_has_nothing_to_learn_from_it(family, kind):
    bench = Bench(family, kind)
    student = bench.student()
    head = student.head_for()
    teacher = replace(
        bench.teacher,
        task=bench.makers[0].task,
        values=type(bench.teacher.values)(student().at_input.detach()),
        head=None if head is None else Head.from_tensors(head.tensors()),
    )
    assert float(bench.added(student, teacher, bench.mine).detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_tasks_in_one_batch_are_compared_as_each_alone(family):
    """Students read the whole row for a vector, and their teachers other rows: all are padded to these."""
    benches = [Bench(family, kind) for kind in ("question-answering", "feature-extraction", "token-classification")]
    students = [bench.student() for bench in benches]
    rows = [(k, example) for k, bench in enumerate(benches) for example in bench.mine]
    examples = [dict(zip(bench.mine, bench.theirs, strict=True)) for bench in benches]
    teachers = Teachers(benches[0].forward, [b.teacher for b in benches], examples, [b.loss for b in benches], 0.7)
    fillings = [Filling(student()) for student in students]
    answers = benches[0].forward.answers([e for _, e in rows], fillings, [k for k, _ in rows], head=False)
    alone = [b.added(student, b.teacher, b.theirs) for b, student in zip(benches, students, strict=True)]
    together = teachers(answers, rows, Several(students))
    assert float(together.detach()) == pytest.approx(sum(float(a.detach()) for a in alone) / 3, rel=1e-5)


@pytest.mark.parametrize(("family", "kind"), pairs("llama", "bert", "t5"))
def test_students_come_nearer_to_teachers_that_are_given(family, kind):
    """Of every kind; rows of two sources in one batch, each with a teacher that was never trained."""
    backbone = reference.backbone(family)
    task, rows = task_of(kind, backbone), [answered(kind, row) for row in ROWS]
    loss = loss_for(Settings(), task, example_maker(backbone, task).verbalizer)
    given = [toys.prompt(backbone, task, seed=seed) for seed in (1, 2)]
    examples, forward = example_maker(backbone, task).all(rows), Forward(backbone)
    distances = {}
    for distill in (0.0, 50.0):
        sources = {str(k): Source(task, rows, teacher=teacher if distill else None) for k, teacher in enumerate(given)}
        result = learn_together(backbone, sources, distill=distill, steps=12, batch_size=6, learning_rate=0.05)
        for k, teacher in enumerate(given):
            student = result.prompts.members[str(k)]
            same = {example: example for example in examples}
            answers = forward.answers(examples, [Filling(student.values)], head=loss.IN_WORDS)
            parametrization = Headed(PromptTuning().build(4, host(backbone, []), torch.Generator()), [student.head])
            taught = Teachers(forward, [teacher], [same], [loss], 1.0)
            distances[distill, k] = float(taught(answers, [(0, e) for e in examples], parametrization))
    for k in range(2):
        assert distances[50.0, k] < 0.8 * distances[0.0, k], distances


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_rows_whose_answer_was_cut_away_are_taught_nothing(family):
    backbone = reference.backbone(family)
    task = Task("{soft:2}{question} {text}", kind="question-answering", max_length=24)
    known = [{"question": "who?", "text": f"{name} won the cup", "label": name} for name in ("Ann", "Bob", "Eve")]
    lost = {"question": "who?", "text": "again and again " * 20 + "Ann won", "label": "Ann won"}
    sources = {"one": Source(task, known * 4), "two": Source(task, [lost, known[0]])}
    learned = toys.learn_together(backbone, sources, MultitaskPromptTuning(tokens=2), steps=12, batch_size=4)
    assert all(t.isfinite().all() for p in learned.prompts.members.values() for t in p.tensors().values())
