"""A training run, from its first checkpoint to its saved prompts: of one prompt, or of several in one batch a step."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy
import torch
import transformers
from transformers import TrainerCallback

from softprompt import artifact
from softprompt.errors import DivergenceError, SettingsError, SoftpromptError
from softprompt.learn import checkpoints
from softprompt.learn.objective import Objective, Row
from softprompt.learn.progress import bar
from softprompt.learn.settings import Settings
from softprompt.learn.trainer import Learner, LearnerTrainer
from softprompt.prompts.method import Parametrization, count
from softprompt.run.forward import Forward
from softprompt.saved import SavedPrompt

if TYPE_CHECKING:
    from softprompt.learn.training import Member

Metrics = Mapping[str, float]

T = TypeVar("T")
"""What the prompts of a run are put together as: one prompt, or several that belong together."""

Prepare = Callable[[Path, bool], Objective]
"""What is made small, given the folder for checkpoints and whether the run goes on."""


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a run yields.

    Attributes:
        saved: the prompts, put together.
        history: what was logged, in order.
    """

    saved: T
    history: Sequence[Metrics]


def check_place(output: str | Path | None, *, overwrite: bool, resume: bool) -> None:
    """See, before any work is begun, that a run can save there.

    Raises:
        SettingsError: there is nothing to resume.
        OutputError: something stands there that may not be replaced.
    """
    if resume and output is None:
        raise SettingsError("there is no output to go on with", where="resume", instead="Give the output of that run.")
    if output is not None:
        artifact.check_output(output, overwrite=overwrite)


@dataclass(frozen=True)
class Run(Generic[T]):
    """Everything that is decided before the first step.

    Attributes:
        members: the prompts that are trained; all of them have rows to be measured on, or none.
        parametrization: what they are made of; its task k is that of member k.
        forward: carries rows through the backbone.
        draw: the rows of each step, from 0.
        settings: how it is trained.
        prepare: makes the objective, where anything is learned.
        together: puts the prompts, one for each member, together.
        save: writes that to a folder; its last argument tells whether what stands there is replaced.
        title: what stands before the progress bar; None where no bars are shown.
        callbacks: of transformers' Trainer.
        more: what else an interrupted run and the one that goes on must have in common, as JSON holds it.
    """

    members: Sequence[Member]
    parametrization: Parametrization
    forward: Forward
    draw: Callable[[int], Sequence[Row]]
    settings: Settings
    prepare: Prepare
    together: Callable[[Sequence[SavedPrompt]], T]
    save: Callable[[T, Path, bool], object]
    title: str | None
    callbacks: Sequence[TrainerCallback]
    more: Mapping[str, Any]

    def __call__(self, output: Path | None, *, overwrite: bool, resume: bool, rescue: bool = True) -> Outcome[T]:
        """Train and save.

        Args:
            output: the folder to save to, if any.
            overwrite: replace what stands there.
            resume: go on from the last checkpoint.
            rescue: whether the last good prompt is saved when the loss is no longer a number.

        Raises:
            RequestError: the output, or what an interrupted run left, cannot be used; nothing was begun.
            DivergenceError: the loss is no longer a number.
            SaveError: the prompts could not be written.
        """
        if output is None:
            with tempfile.TemporaryDirectory(prefix="softprompt-") as place, _callers_randomness():
                return self._through(Path(place), None, resume=False)
        folder = checkpoints.folder_for(output)
        with checkpoints.held(folder), _callers_randomness():
            checkpoints.make_ready(folder, self.identity(), resume=resume, overwrite=overwrite)
            outcome = self._through(folder, output if rescue else None, resume=resume)
            self.save(outcome.saved, output, overwrite)
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def identity(self) -> dict[str, Any]:
        """What an interrupted run and the one that goes on must have in common, as JSON holds it."""
        facts: dict[str, Any] = {}
        for number, member in enumerate(self.members):
            own = member.facts(self.parametrization, number)
            facts |= {f"{member.name}'s {name}" if member.name else name: fact for name, fact in own.items()}
        return json.loads(json.dumps({**facts, **self.settings.deciding(), **self.more}))

    def _through(self, folder: Path, rescue_by: Path | None, *, resume: bool) -> Outcome[T]:
        """Train; where the loss is no longer a number, the last good prompt is saved beside `rescue_by`."""
        learns = self.members[0].learns
        objective = self.prepare(folder, resume) if learns else None
        began = time.monotonic()
        left, found = self._read_ahead(), self.forward.reader.found
        read = time.monotonic()
        outcome, history = self.parametrization, []
        kept: Sequence[Metrics | None] = [None] * len(self.members)
        if objective is not None:
            trainer = self._trainer(objective, folder, rescues=rescue_by is not None)
            try:
                trainer.run(checkpoints.last_checkpoint(folder) if resume else None)
            except DivergenceError as error:
                if rescue_by is None:
                    raise
                raise self._rescue(error, trainer, rescue_by, folder) from None
            outcome, history, kept = trainer.learner.outcome, trainer.state.log_history, trainer.kept
        trained = time.monotonic()
        if all(member.held_out for member in self.members):
            # A resumed run may have been measured at its best before it was interrupted.
            measured = [m for m in kept if m is not None]
            metrics = measured if len(measured) == len(kept) else self.measure(outcome)
        else:
            losses = [entry["loss"] for entry in history if "loss" in entry]
            # What is logged of several is their mean.
            name = "train_loss" if len(self.members) == 1 else "mean_train_loss"
            metrics = [{name: losses[-1]} if losses else {}] * len(self.members)
        facts = {
            "texts_not_kept": left,
            "texts_from_cache": found,
            "padding": round(self.forward.ran.padding, 3),
            "computation_shared": self.forward.backbone.lowers,
            "quantized": self.forward.backbone.quantized,
            "quantization": self.forward.backbone.quantization,
            "reading_seconds": round(read - began, 1),
            "training_seconds": round(trained - read, 1),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }
        prompts = []
        for number, (member, own) in enumerate(zip(self.members, metrics, strict=True)):
            own_facts = {
                **(member.settings.facts() | {"learning_rate": member.learning_rate} if learns else {}),
                **member.lengths(),
                "trained_parameters": count(self.parametrization.learned_by(number)),
            }
            prompts.append(member.prompt(outcome, number, own, own_facts | facts))
        return Outcome(self.together(prompts), history)

    def _trainer(self, objective: Objective, folder: Path, *, rescues: bool) -> LearnerTrainer:
        return LearnerTrainer(
            Learner(self.parametrization, objective),
            self.settings,
            self.members[0].learning_rate,
            self.draw,
            folder,
            self.measure if all(member.held_out for member in self.members) else None,
            names=[member.name for member in self.members],
            best_by="loss" if any(member.task.kind == "generation" for member in self.members) else "accuracy",
            device=self.forward.backbone.device,
            title=self.title,
            callbacks=self.callbacks,
            rescues=rescues,
        )

    def measure(self, parametrization: Parametrization) -> list[Metrics]:
        """The metrics of each member's prompt on its own rows."""
        rows = sum(len(member.held_out) for member in self.members)
        with (
            torch.no_grad(),
            self.forward.uncounted(),
            bar("Evaluating", rows, "row", show=self.title is not None, leave=False) as evaluating,
        ):
            return [
                member.measure(self.forward, parametrization, number, evaluating.update)
                for number, member in enumerate(self.members)
            ]

    def _read_ahead(self) -> int:
        examples = [e for m in self.members for e in [*(m.data if m.learns else ()), *m.held_out]]
        plans = [self.forward.plan(e) for e in examples]
        texts = len({(p.head, p.text) for p in plans if p.text})
        with bar("Reading texts once", texts, "text", show=self.title is not None and texts > 0) as reading:
            return self.forward.reader.read_ahead(plans, reading.update)

    def _rescue(self, error: DivergenceError, trainer: LearnerTrainer, output: Path, folder: Path) -> DivergenceError:
        """Save the last good parameters beside the output, and say where."""
        if trainer.last_good is None:
            return error
        self.parametrization.load_state_dict(trainer.last_good)
        place = output.with_name(output.name + ".last-good")
        prompts = [
            member.prompt(self.parametrization, number, {}, {**member.settings.facts(), "diverged_at_step": error.step})
            for number, member in enumerate(self.members)
        ]
        what = "the prompt" if len(prompts) == 1 else "the prompts"
        try:
            self.save(self.together(prompts), place, True)
            where = f"{what} before it {'is' if len(prompts) == 1 else 'are'} in {place}"
            # Going on from a checkpoint would end in the same way.
            shutil.rmtree(folder, ignore_errors=True)
        except SoftpromptError as cause:
            where = f"{what} before it could not be saved ({cause})"
        return DivergenceError(f"{error.what}; {where}", step=error.step, instead=error.instead)


@contextmanager
def _callers_randomness() -> Iterator[None]:
    """The Trainer seeds every generator there is; the caller's go on as if nothing had been drawn."""
    python, numpy_state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(numpy_state)
