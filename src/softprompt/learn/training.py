"""Train one prompt: from rows to a saved folder."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from torch import Tensor
from transformers import TrainerCallback

from softprompt import artifact
from softprompt.artifact import SavedPrompt, TrainingState
from softprompt.backbone.backbone import Backbone
from softprompt.errors import DivergenceError, SettingsError, SoftpromptError
from softprompt.learn import checkpoints
from softprompt.learn.evaluation import measure
from softprompt.learn.losses import loss_for
from softprompt.learn.objective import Objective
from softprompt.learn.order import Shuffled
from softprompt.learn.progress import bar
from softprompt.learn.settings import Settings
from softprompt.learn.trainer import Learner, LearnerTrainer
from softprompt.prompts.head import Head, Headed
from softprompt.prompts.method import Host, Method, Parametrization, count, resolve_task
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.task import Task

HEAD_LEARNING_RATE = 5e-3
"""Of a head alone, where the method beside it learns nothing."""


@dataclass(frozen=True)
class Result:
    """What training yields.

    Attributes:
        prompt: the prompt, as it is saved.
        metrics: of the kept prompt on the evaluation rows; the last training loss where there are none.
        path: the folder it was saved to, or None.
        history: what was logged, in order: losses, learning rates, evaluations, each with its step.
    """

    prompt: SavedPrompt
    metrics: Mapping[str, float]
    path: Path | None
    history: Sequence[Mapping[str, float]]


def train(
    backbone: Backbone,
    task: Task,
    method: Method,
    train_rows: Sequence[Mapping[str, Any]],
    eval_rows: Sequence[Mapping[str, Any]] | None = None,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    start: str | Path | SavedPrompt | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> Result:
    """Train a prompt on rows; the backbone is not changed.

    Args:
        backbone: the frozen model.
        task: template and labels. A template without a slot gets one in front, if the method learns anything.
        method: what is learned, and from where it starts. One that learns nothing is evaluated and saved.
        train_rows: each with the template's fields and the answer.
        eval_rows: rows to measure on; the best evaluation's prompt is kept.
        output: the folder to save the prompt to. Checkpoints stand beside it, in `OUTPUT.checkpoints`, until training
            is through.
        overwrite: replace a prompt that stands there.
        resume: go on from the last checkpoint of an interrupted run with the same settings and rows; the outcome is
            that of a run that was never interrupted, to the last bit. Begins anew where there is no checkpoint.
        progress: show progress bars.
        callbacks: of transformers' Trainer: trackers, early stopping.
        start: a saved prompt of the same method to begin from, instead of the method's own start.
        settings: see `Settings`; or give its attributes as keywords (`steps=150`, `learning_rate=5e-3`, ...).

    Raises:
        RequestError: a row, the template, a setting or the output folder cannot be used; nothing was begun.
        DivergenceError: the loss is no longer a number. The last good prompt is saved as `OUTPUT.last-good`; without an
            output it is lost.
        SaveError: the prompt could not be written.
    """
    unknown = set(options) - set(Settings.known())
    if unknown:
        raise SettingsError(
            f"there is no setting {', '.join(sorted(unknown))}", instead=f"There are {', '.join(Settings.known())}."
        )
    settings = replace(settings or Settings(), **options)
    idle = sorted(set(options) - set(Settings.MEASURING))
    if idle and not method.LEARNS and not task.outputs:
        raise SettingsError(
            f"a {method.NAME} learns nothing, so it takes no {', '.join(idle)}",
            instead="Leave it out, or use a method that learns.",
        )
    if resume and output is None:
        raise SettingsError("there is no output to go on with", where="resume", instead="Give the output of that run.")
    if output is not None:
        artifact.check_output(output, overwrite=overwrite)
    run = _Run(backbone, task, method, settings, progress, callbacks)
    if start is not None:
        run.begin_from(start)
    data = run.maker.all(train_rows)
    held_out = run.maker.all(eval_rows) if eval_rows else []
    if output is None:
        with tempfile.TemporaryDirectory(prefix="softprompt-") as place, _callers_randomness():
            return run(data, held_out, Path(place), resume=False)
    output = Path(output)
    folder = checkpoints.folder_for(output)
    with checkpoints.held(folder), _callers_randomness():
        checkpoints.make_ready(folder, run.identity(data, held_out), resume=resume, overwrite=overwrite)
        try:
            result = run(data, held_out, folder, resume=resume)
        except DivergenceError as error:
            raise run.rescue(error, output, folder) from None
        artifact.save(result.prompt, output, overwrite=overwrite)
        shutil.rmtree(folder, ignore_errors=True)
    return replace(result, path=output)


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


class _Run:
    """One training run: everything that is decided before the first step."""

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        method: Method,
        settings: Settings,
        progress: bool,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.backbone, self.method, self.settings = backbone, method, settings
        self.progress, self.callbacks = progress, callbacks
        self.task = resolve_task(task, method)
        self.maker = example_maker(backbone, self.task)
        self.learns = method.LEARNS or bool(task.outputs)
        self.forward = Forward(backbone, budget=settings.cache_bytes)
        self.learning_rate = settings.learning_rate or method.LEARNING_RATE or HEAD_LEARNING_RATE
        generator = torch.Generator().manual_seed(settings.seed)
        self.parametrization = method.build(self.maker.virtual, _host(backbone, self.maker), generator)
        if task.outputs:
            head = Head.random(backbone.state_size, task.outputs, generator)
            self.parametrization = Headed(self.parametrization, head)
        self.parametrization.to(backbone.device)
        self._note_start()
        self._trainer: LearnerTrainer | None = None

    def identity(self, data: Sequence[Example], held_out: Sequence[Example]) -> dict[str, Any]:
        """What an interrupted run and the one that goes on must have in common, as JSON holds it."""
        facts = {
            "backbone": [self.backbone.fingerprint, self.backbone.tokenizer_fingerprint, str(self.backbone.dtype)],
            "template": self.task.template.source,
            "kind": self.task.kind,
            "labels": [list(self.task.labels), list(self.task.words), self.task.none],
            "target": self.task.target,
            "field": self.task.field,
            "max_length": self.task.max_length,
            "method": self.method.NAME,
            **{f"method's {name}": value for name, value in self.method.settings().items()},
            **self.settings.facts(),
            "training rows": _digest(data),
            "evaluation rows": _digest(held_out),
            "start": hashlib.sha256(b"".join(t.numpy().tobytes() for t in self.start.values())).hexdigest(),
        }
        return json.loads(json.dumps(facts))

    def __call__(self, data: list[Example], held_out: list[Example], folder: Path, *, resume: bool) -> Result:
        began = time.monotonic()
        left = self._read_ahead([*(data if self.learns else ()), *held_out])
        read = time.monotonic()
        history: Sequence[Mapping[str, float]] = []
        metrics: Mapping[str, float] | None = None
        outcome = self.parametrization
        if self.learns:
            trainer = self._make_trainer(data, held_out, folder)
            trainer.run(checkpoints.last_checkpoint(folder) if resume else None)
            outcome, history, metrics = trainer.learner.outcome, trainer.state.log_history, trainer.kept
        trained = time.monotonic()
        if held_out:
            # A resumed run may have been measured at its best before it was interrupted.
            metrics = metrics or self._measure(held_out, outcome)
        else:
            losses = [entry["loss"] for entry in history if "loss" in entry]
            metrics = {"train_loss": losses[-1]} if losses else {}
        prompt = self._prompt(
            outcome,
            metrics,
            {
                **(self.settings.facts() | {"learning_rate": self.learning_rate} if self.learns else {}),
                "training_rows": len(data),
                "evaluation_rows": len(held_out),
                "rows_cut": sum(e.cut > 0 for e in [*data, *held_out]),
                "texts_not_kept": left,
                "computation_shared": self.backbone.lowers,
                "trained_parameters": count([p for group in outcome.groups().values() for p in group]),
                "reading_seconds": round(read - began, 1),
                "training_seconds": round(trained - read, 1),
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
            },
            self.start,
        )
        return Result(prompt, metrics, None, history)

    def begin_from(self, start: str | Path | SavedPrompt) -> None:
        """Take the parameters of a saved prompt for the start.

        Raises:
            SettingsError: it is of another method, or of another shape, or its parameters were not saved.
            ArtifactError, MismatchError: it cannot be read, or belongs to another backbone.
        """
        saved = start if isinstance(start, SavedPrompt) else artifact.load(start, training=True)
        where = "start" if isinstance(start, SavedPrompt) else str(start)
        saved.check(self.backbone, where)
        if saved.method.NAME != self.method.NAME or saved.state is None:
            raise SettingsError(
                f"it is a {saved.method.NAME} prompt"
                + (", not " + self.method.NAME if saved.state is not None else " without its parameters"),
                where=where,
                instead=f"Give a {self.method.NAME} prompt with its training.safetensors.",
            )
        own = {name: list(t.shape) for name, t in self.parametrization.state_dict().items()}
        theirs = {name: list(t.shape) for name, t in saved.state.parameters.items()}
        if own != theirs:
            raise SettingsError(
                f"its parameters are {theirs}, those asked for {own}",
                where=where,
                instead="Give the settings and the slots' lengths that it was trained with.",
            )
        self.parametrization.load_state_dict(dict(saved.state.parameters))
        self._note_start()

    def _note_start(self) -> None:
        # A copy: what `tensors` gives may share memory with the parameters.
        prompt = self._prompt(self.parametrization, {}, {}, {})
        self.start = {name: t.clone() for name, t in prompt.tensors().items()}

    def rescue(self, error: DivergenceError, output: Path, folder: Path) -> DivergenceError:
        """Save the last good parameters beside the output, and say where."""
        trainer = self._trainer
        if trainer is None or trainer.last_good is None:
            return error
        self.parametrization.load_state_dict(trainer.last_good)
        place = output.with_name(output.name + ".last-good")
        facts = {**self.settings.facts(), "diverged_at_step": error.step}
        prompt = self._prompt(self.parametrization, {}, facts, self.start)
        try:
            artifact.save(prompt, place, overwrite=True)
            where = f"the prompt before it is in {place}"
            # Going on from a checkpoint would end in the same way.
            shutil.rmtree(folder, ignore_errors=True)
        except SoftpromptError as cause:
            where = f"the prompt before it could not be saved ({cause})"
        return DivergenceError(f"{error.what}; {where}", step=error.step, instead=error.instead)

    def _make_trainer(self, data: Sequence[Example], held_out: Sequence[Example], folder: Path) -> LearnerTrainer:
        loss = loss_for(self.settings, self.task, self.maker.verbalizer)
        learner = Learner(self.parametrization, Objective(self.forward, [loss]))
        self._trainer = LearnerTrainer(
            learner,
            self.settings,
            self.learning_rate,
            Shuffled([(0, example) for example in data], self.settings.batch_size, self.settings.seed),
            folder,
            (lambda parametrization: self._measure(held_out, parametrization)) if held_out else None,
            best_by="loss" if self.task.kind == "generation" else "accuracy",
            device=self.backbone.device,
            progress=self.progress,
            callbacks=self.callbacks,
        )
        return self._trainer

    def _read_ahead(self, examples: Sequence[Example]) -> int:
        plans = [self.forward.plan(e) for e in examples]
        texts = len({(p.head, p.text) for p in plans if p.text})
        with bar("Reading texts once", texts, "text", show=self.progress and texts > 0) as reading:
            return self.forward.reader.read_ahead(plans, reading.update)

    def _measure(self, examples: Sequence[Example], parametrization: Parametrization) -> dict[str, float]:
        with (
            torch.no_grad(),
            bar("Evaluating", len(examples), "row", show=self.progress, leave=False) as evaluating,
        ):
            # Compiled for this evaluation only: the values go on changing.
            filling = Filling(parametrization(), {})
            return measure(
                self.forward,
                self.maker,
                examples,
                filling,
                self.settings.eval_batch_size,
                evaluating.update,
                parametrization.head_for(),
            )

    def _prompt(
        self,
        parametrization: Parametrization,
        metrics: Mapping[str, float],
        facts: Mapping[str, Any],
        start: Mapping[str, Tensor],
    ) -> SavedPrompt:
        values, head = parametrization(), parametrization.head_for()
        return SavedPrompt(
            method=self.method,
            task=self.task,
            values=type(values).from_tensors({name: t.clone() for name, t in values.tensors().items()}),
            backbone_name=self.backbone.name,
            backbone_fingerprint=self.backbone.fingerprint,
            tokenizer_fingerprint=self.backbone.tokenizer_fingerprint,
            dtype=str(self.backbone.dtype).removeprefix("torch."),
            training=facts,
            metrics=metrics,
            state=TrainingState(
                {name: t.detach().cpu().clone() for name, t in parametrization.state_dict().items()}, start
            )
            if self.learns
            else None,
            head=None if head is None else Head.from_tensors(head.tensors()),
        )


def _host(backbone: Backbone, maker: ExampleMaker) -> Host:
    tokenizer = backbone.tokenizer
    return Host(
        size=backbone.vocabulary_size,
        width=backbone.hidden_size,
        # Control tokens that have no role of their own (`<repo_name>`, say) are in none of the tokenizer's lists.
        special=frozenset(tokenizer.all_special_ids)
        | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special},
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        embed=lambda ids: backbone.embed(ids.to(backbone.device)).float().cpu(),
        labels=maker.verbalizer.words if maker.verbalizer else (),
        sites=backbone.site_shapes,
        attend=backbone.attended if backbone.sites else None,
    )


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.tokens, example.target, example.labels, example.reads)).encode())
    return digest.hexdigest()
