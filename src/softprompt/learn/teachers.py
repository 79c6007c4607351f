"""A teacher for each of several tasks: a prompt that is given, or one that is trained first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from softprompt import artifact, atomic
from softprompt.errors import DivergenceError, SettingsError, SoftpromptError
from softprompt.learn import checkpoints
from softprompt.learn.distillation import Teachers
from softprompt.learn.settings import Settings
from softprompt.learn.training import Member, run_alone
from softprompt.prompts import PromptTuning
from softprompt.run.forward import Forward
from softprompt.run.maker import example_maker
from softprompt.saved import SavedPrompt
from softprompt.text.examples import Example

Given = str | Path | SavedPrompt | None
"""A teacher, or None where it has to be trained."""


def teacher_settings(settings: Settings, steps: int | None, learning_rate: float | None) -> Settings:
    """How teachers are trained whose students are trained by `settings`; None takes theirs.

    Raises:
        SettingsError: a value is out of range.
    """
    given: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate}
    try:
        return replace(settings, **{name: value for name, value in given.items() if value is not None})
    except SettingsError as error:
        error.where = f"teacher_{error.where}"
        raise


class Teaching:
    """What several tasks' prompts learn from.

    Attributes:
        prompts: the teachers by the names of their tasks; those that are trained are added by `prepare`.

    Args:
        members: the students, with their rows.
        given: for each of them its teacher, or None.
        settings: of a teacher's training.
        weight: of the teachers in the loss.
        progress: whether to show bars.

    Raises:
        RequestError: a teacher belongs to another backbone, answers otherwise than its student, or cannot take a row.
    """

    def __init__(
        self, members: Sequence[Member], given: Sequence[Given], settings: Settings, weight: float, *, progress: bool
    ) -> None:
        self._members, self._settings, self._weight, self._progress = members, settings, weight, progress
        self.prompts: dict[str, SavedPrompt] = {}
        self._examples: dict[str, Mapping[Example, Example]] = {}
        for member, teacher in zip(members, given, strict=True):
            if teacher is not None:
                self.prompts[member.name] = _taken_in(member, teacher)
                self._examples[member.name] = _examples(member, self.prompts[member.name])

    def facts(self) -> dict[str, Any]:
        """What decides about the outcome, as JSON holds it."""
        given = {name: _digest(prompt) for name, prompt in sorted(self.prompts.items())}
        return {
            "distill": self._weight,
            "teacher_steps": self._settings.steps,
            "teacher_learning_rate": self._settings.learning_rate,
            "given_teachers": given,
        }

    def prepare(self, forward: Forward, folder: Path, *, resume: bool) -> Teachers:
        """Train those that were not given.

        Args:
            forward: carries rows through the backbone.
            folder: the checkpoints of the students' run.
            resume: whether that goes on.

        Raises:
            DivergenceError: the loss of one is no longer a number; the message says of which.
        """
        for member in self._members:
            if member.name not in self.prompts:
                place = checkpoints.teachers_in(folder) / member.name
                self.prompts[member.name] = self._trained(member, place, resume=resume)
                self._examples[member.name] = _examples(member, self.prompts[member.name])
        names = [member.name for member in self._members]
        return Teachers(
            forward,
            [self.prompts[name] for name in names],
            [self._examples[name] for name in names],
            [member.loss for member in self._members],
            self._weight,
        )

    def _trained(self, student: Member, place: Path, *, resume: bool) -> SavedPrompt:
        """Plain prompt tuning, from where the prompt that all students share starts, too."""
        if resume and atomic.standing(place) is not None:
            return artifact.load(place, student.backbone)
        settings = {
            name: value for name, value in student.method.settings().items() if name in PromptTuning.setting_names()
        }
        teacher = Member(student.backbone, student.task, PromptTuning(**settings), self._settings)
        teacher.data, teacher.held_out = student.data, student.held_out
        title = f"Teacher of {student.name}" if self._progress else None
        try:
            outcome = run_alone(teacher, teacher.build(), title, ())(
                place, overwrite=False, resume=resume, rescue=False
            )
        except DivergenceError as error:
            error.where = f"the teacher of {student.name}"
            raise
        return outcome.saved


def _taken_in(student: Member, given: str | Path | SavedPrompt) -> SavedPrompt:
    where = f"the teacher of {student.name}"
    if isinstance(given, SavedPrompt):
        given.check(student.backbone, where)
    teacher = given if isinstance(given, SavedPrompt) else artifact.load(given, student.backbone)
    if teacher.task.kind != student.task.kind:
        raise SettingsError(
            f"its task is {teacher.task.kind}, that of its student {student.task.kind}",
            where=where,
            instead="Give a prompt that answers as its student is to answer.",
        )
    mine, theirs = ((task.labels, task.words, task.target) for task in (student.task, teacher.task))
    if mine != theirs:
        raise SettingsError(
            f"its task has labels {list(theirs[0])}, written {list(theirs[1])}, in the field {theirs[2]!r}; "
            f"that of its student has {list(mine[0])}, {list(mine[1])}, {mine[2]!r}",
            where=where,
            instead="Give a prompt that answers as its student is to answer.",
        )
    return teacher


def _examples(student: Member, teacher: SavedPrompt) -> dict[Example, Example]:
    """By the student's example of each row, the teacher's.

    Where two rows look alike to the student, its teacher reads the last of them.
    """
    where = f"the teacher of {student.name}"
    maker = example_maker(student.backbone, teacher.task, inside=teacher.inside)
    try:
        own = maker.all(student.rows)
    except SoftpromptError as error:
        error.where = f"{where}, {error.where}" if error.where else where
        raise
    for number, (mine, theirs) in enumerate(zip(student.data, own, strict=True), 1):
        if (mine.target, mine.labels) != (theirs.target, theirs.labels):
            raise SettingsError(
                f"it answers row {number} in other tokens than its student",
                where=where,
                instead="Put {label} behind the same text in both templates.",
            )
    return dict(zip(student.data, own, strict=True))


def _digest(prompt: SavedPrompt) -> str:
    tensors = sorted(prompt.tensors().items())
    content = b"".join([prompt.task.template.source.encode(), *(t.numpy().tobytes() for _, t in tensors)])
    return hashlib.sha256(content).hexdigest()
