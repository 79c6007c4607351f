"""Training one prompt, on transformers' Trainer."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from softprompt import artifact
from softprompt.artifact import SavedPrompt
from softprompt.backbone.backbone import Backbone
from softprompt.errors import DivergenceError, OutputError, SettingsError
from softprompt.learn.evaluation import evaluate
from softprompt.learn.progress import TrainingBar, bar
from softprompt.learn.settings import Settings
from softprompt.prompts.method import Method, Parametrization, Vocabulary, count
from softprompt.run.forward import Filling, Forward
from softprompt.run.loss import answer_loss, label_loss
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.task import Task


@dataclass(frozen=True)
class Result:
    """What training yields.

    Attributes:
        prompt: the prompt, as it is saved.
        metrics: of the kept prompt on the evaluation rows; of the last loss where there are none.
        path: the folder it was saved to, or None.
        history: what was logged, in order: steps, losses, evaluations.
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
    settings: Settings | None = None,
    **options: Any,
) -> Result:
    """Train a prompt on rows; the backbone is not changed.

    Args:
        backbone: the frozen model.
        task: template and labels. A template without a slot gets one in front, if the method learns anything.
        method: what is learned, and from where it starts.
        train_rows: each with the template's fields and the answer.
        eval_rows: rows to measure on; the best evaluation's prompt is kept.
        output: the folder to save the prompt to. Checkpoints stand beside it, in `OUTPUT.checkpoints`, until training
            is through.
        overwrite: replace a prompt that is there.
        resume: go on from the last checkpoint of an interrupted run with the same settings; the outcome is that of a
            run that was never interrupted, to the last bit.
        progress: show progress bars.
        settings: see `Settings`; or give its attributes as keywords (`steps=150`, `learning_rate=5e-3`, ...).

    Raises:
        RequestError: a row, the template, a setting or the output folder cannot be used; nothing was begun.
        DivergenceError: the loss is no longer a number. The last good prompt is in `OUTPUT.last-good`.
        SaveError: the prompt could not be written.
    """
    settings = _settings(settings, options)
    run = _Run(backbone, task, method, settings, progress)
    data = run.maker.all(train_rows)
    held_out = run.maker.all(eval_rows) if eval_rows else []
    if output is None:
        with tempfile.TemporaryDirectory(prefix="softprompt-") as folder:
            return run.train(data, held_out, Path(folder), resume=False, output=None, overwrite=False)
    output = Path(output)
    artifact.check_output(output, overwrite=overwrite)
    checkpoints = output.with_name(output.name + ".checkpoints")
    _check_checkpoints(checkpoints, resume=resume, overwrite=overwrite)
    return run.train(data, held_out, checkpoints, resume=resume, output=output, overwrite=overwrite)


def _settings(settings: Settings | None, options: Mapping[str, Any]) -> Settings:
    unknown = set(options) - set(Settings.known())
    if unknown:
        raise SettingsError(
            f"there is no setting {', '.join(sorted(unknown))}", instead=f"There are {', '.join(Settings.known())}."
        )
    return replace(settings or Settings(), **options)


def _check_checkpoints(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if resume or not folder.exists():
        return
    if overwrite:
        shutil.rmtree(folder)
        return
    raise OutputError(
        "an interrupted run stands there",
        where=str(folder),
        instead="Go on with resume (--resume), or begin anew with overwrite (--overwrite).",
    )


class _Run:
    """One training run: everything that is decided before the first step."""

    def __init__(self, backbone: Backbone, task: Task, method: Method, settings: Settings, progress: bool) -> None:
        self.backbone, self.method, self.settings, self.progress = backbone, method, settings, progress
        self.task = resolve_task(task, method)
        self.maker = ExampleMaker(self.task, backbone.tokenizer, backbone.positions)
        self.forward = Forward(backbone, budget=settings.cache_bytes)
        self.parametrization = method.build(
            self.maker.virtual, vocabulary(backbone, self.maker), torch.Generator().manual_seed(settings.seed)
        ).to(backbone.device)
        self.start = self.parametrization().values_for_record()

    def train(
        self,
        data: list[Example],
        held_out: list[Example],
        checkpoints: Path,
        *,
        resume: bool,
        output: Path | None,
        overwrite: bool,
    ) -> Result:
        raise NotImplementedError
