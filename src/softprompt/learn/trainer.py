"""The training loop: transformers' Trainer over a module that holds the parameters of prompts alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from softprompt.errors import DivergenceError, SaveError
from softprompt.learn.checkpoints import history_of, step_of
from softprompt.learn.evaluation import average
from softprompt.learn.objective import Objective, Row
from softprompt.learn.progress import TrainingBar
from softprompt.learn.settings import Settings
from softprompt.prompts.method import Parametrization
from softprompt.run.ranges import Part, within


class Learner(nn.Module):
    """What is trained, and what is kept: the parameters, and a copy of each part at its best evaluation so far.

    Both are in its state, so a checkpoint holds both and an interrupted run forgets nothing. The backbone is not: it
    stays out of checkpoints, optimizer and train mode.

    Attributes:
        parametrization: the parameters.
        best: a copy of it, each part as it was at its best evaluation.
        objective: what is made small.
        score: `[parts, 2]` float64, accuracy and negative loss of that evaluation; -inf before the first.
    """

    score: Tensor

    def __init__(self, parametrization: Parametrization, objective: Objective) -> None:
        super().__init__()
        self.parametrization = parametrization
        self.best = copy.deepcopy(parametrization).requires_grad_(False)
        parts = len(parametrization.parts())
        self.register_buffer("score", torch.full((parts, 2), float("-inf"), dtype=torch.float64))
        self.objective = objective

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """The loss over a step's rows, a scalar: the sum of the parts' own, so that none learns of the others.

        The parts have as many rows each.
        """
        loss = self.objective(self.parametrization, rows)
        return loss * len(self.score) if len(self.score) > 1 else loss

    def keep(self, metrics: Sequence[Mapping[str, float]]) -> list[bool]:
        """Remember each part as it is, unless an evaluation was as good; tells which were remembered.

        Of two evaluations with the same accuracy the one with the smaller loss is better.

        Args:
            metrics: of each part.
        """
        kept = []
        for i, (own, part, best) in enumerate(
            zip(metrics, self.parametrization.parts(), self.best.parts(), strict=True)
        ):
            score = [own.get("accuracy", 0.0), -own["loss"]]
            kept.append(score > self.score[i].tolist())
            if kept[-1]:
                self.score[i] = torch.tensor(score, dtype=torch.float64)
                best.load_state_dict(part.state_dict())
        return kept

    @property
    def outcome(self) -> Parametrization:
        """What is saved: the parameters of the best evaluations, or the last where there was no evaluation."""
        return self.best if bool(torch.isfinite(self.score).all()) else self.parametrization


class LearnerTrainer(Trainer):
    """transformers' Trainer with our rows, our evaluation, and an end as soon as the loss is no number.

    Args:
        learner: what is trained.
        settings: how.
        learning_rate: of AdamW.
        draw: the rows of each step, from 0.
        folder: for checkpoints.
        measure: the metrics of each prompt as it stands; None where there is nothing to measure on.
        names: how these prompts are called, where there are several.
        best_by: the metric by which transformers' own bookkeeping calls an evaluation the best.
        device: where the backbone is.
        title: what stands before the progress bar; None where none is shown.
        callbacks: more of them.
        rescues: whether the last good parameters are wanted where the loss is no longer a number.
    """

    def __init__(
        self,
        learner: Learner,
        settings: Settings,
        learning_rate: float,
        draw: Callable[[int], Sequence[Row]],
        folder: Path,
        measure: Callable[[Parametrization], Sequence[Mapping[str, float]]] | None,
        *,
        names: Sequence[str],
        best_by: str,
        device: torch.device,
        title: str | None,
        callbacks: Sequence[TrainerCallback],
        rescues: bool,
    ) -> None:
        self.learner = learner
        self._measure, self._names, self._rescues = measure, names, rescues
        self.kept: list[Mapping[str, float] | None] = [None] * len(names)
        """The metrics of each prompt that is kept; None where it was measured before this run went on."""
        self.last_good: dict[str, Tensor] | None = None
        """The state with which the loss was last a number; None where it is not wanted."""
        log_every = max(1, settings.steps // 30)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=settings.steps,
            per_device_train_batch_size=1,
            learning_rate=learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=int(settings.warmup * settings.steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=0,  # `_Watch` clips, each part by itself
            seed=settings.seed,
            data_seed=settings.seed,
            logging_steps=log_every,
            save_strategy="steps",
            save_steps=5 * log_every,
            save_total_limit=2,
            eval_strategy="steps" if measure else "no",
            eval_steps=settings.eval_every or max(1, -(-settings.steps // 3)),
            metric_for_best_model=best_by,
            greater_is_better=best_by != "loss",
            disable_tqdm=True,
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=device.type == "cuda",
            use_cpu=device.type == "cpu",
        )
        assert arguments.device is not None  # asked for, so that the next line is not undone
        # Several GPUs in one process would each be given the whole batch; several processes share it out.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        super().__init__(
            model=learner,
            args=arguments,
            train_dataset=_Steps(draw, settings.steps * arguments.world_size),
            eval_dataset=[],
            data_collator=_collate,
            callbacks=[
                _Watch(self, settings.max_grad_norm),
                *([_LastEvaluation()] if measure else []),
                *([TrainingBar(title)] if title is not None else []),
                *callbacks,
            ],
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        # What stands in a step is shuffled already.
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        rate, rates = self.args.learning_rate, self.learner.parametrization.rates()
        groups = [
            {"params": parameters, "name": name, "lr": rate * rates.get(name, 1.0)}
            for name, parameters in self.learner.parametrization.groups().items()
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=self.args.weight_decay)
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Tensor:
        with within(Part.FORWARD):
            loss = model(**inputs)
        if not bool(torch.isfinite(loss)):
            raise _diverged(f"the loss is {float(loss.detach())}", self.state.global_step + 1)
        self.remember()
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the Trainer does it; what it logs is the mean of the parts' losses."""
        with within(Part.STEP):
            return super().training_step(*args, **kwargs) / len(self.learner.score)

    def remember(self) -> None:
        """Take the parameters, as they are, for good ones."""
        if not self._rescues:
            return
        parametrization = self.learner.parametrization
        if self.last_good is None:
            self.last_good = {name: t.clone() for name, t in parametrization.state_dict().items()}
            return
        # Into the same memory, and no buffer: an encoder or an MLP may be large, and nothing else changes.
        for name, parameter in parametrization.named_parameters():
            self.last_good[name].copy_(parameter.detach())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the prompts as they stand, log that, and keep what is the best."""
        assert self._measure is not None, "evaluations were asked for"
        metrics = self._measure(self.learner.parametrization)
        mean = average(metrics)
        if not math.isfinite(mean["loss"]):
            raise _diverged(f"the loss on the evaluation rows is {mean['loss']}", self.state.global_step)
        parts = len(self.learner.score)
        for i, kept in enumerate(self.learner.keep([mean] if parts == 1 else metrics)):
            if kept:
                own = slice(None) if parts == 1 else slice(i, i + 1)
                self.kept[own] = metrics[own]
        logged = {f"eval_{name}": value for name, value in mean.items()}
        if len(metrics) > 1:
            for prompt, own_metrics in zip(self._names, metrics, strict=True):
                logged |= {f"eval_{prompt}.{name}": value for name, value in own_metrics.items()}
        self.log(logged)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, logged)
        return logged

    def run(self, checkpoint: Path | None) -> None:
        """Train to the end, from the beginning or from a checkpoint."""
        if checkpoint is not None and step_of(checkpoint) >= self.args.max_steps:
            self.learner.load_state_dict(load_file(checkpoint / "model.safetensors"))
            self.state.log_history = history_of(checkpoint)
            return
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, TrainingBar):
                    callback.close()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as cause:  # as torch and safetensors report a full disk
            raise SaveError(
                f"the checkpoint of step {self.state.global_step} could not be written: {cause}",
                where=str(self.args.output_dir),
                instead="Free some space and go on with resume (--resume).",
            ) from cause


def _diverged(what: str, step: int) -> DivergenceError:
    return DivergenceError(
        f"{what} at step {step}",
        step=step,
        instead="Lower the learning rate, or clip gradients harder (max_grad_norm).",
    )


class _Steps(torch.utils.data.Dataset):
    """The rows of each step. Of several processes each takes every so many-th."""

    def __init__(self, draw: Callable[[int], Sequence[Row]], steps: int) -> None:
        self._draw, self._steps = draw, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Sequence[Row]:
        return self._draw(step)


def _collate(steps: list[Sequence[Row]]) -> dict[str, Sequence[Row]]:
    (rows,) = steps
    return {"rows": rows}


class _Watch(TrainerCallback):
    """Clips gradients before each update; behind it, lets the method have its say (projections, bounds), and sees that
    it left numbers."""

    def __init__(self, trainer: LearnerTrainer, max_grad_norm: float) -> None:
        self._trainer, self._max_grad_norm = trainer, max_grad_norm

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # By now a checkpoint has been read: what it holds is good.
        self._trainer.remember()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for part in self._trainer.learner.parametrization.parts():
            self._trainer.accelerator.clip_grad_norm_(part.parameters(), self._max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parametrization = self._trainer.learner.parametrization
        parametrization.after_step()
        # A gradient that is no number spoils the prompt without the loss having shown it, at the last step for good.
        if not all(bool(torch.isfinite(p).all()) for p in parametrization.parameters()):
            raise _diverged("the prompt holds numbers that are not finite", state.global_step + 1)


class _LastEvaluation(TrainerCallback):
    """Evaluates after the last step, too, where its number is no multiple."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step == state.max_steps:
            control.should_evaluate = True
        return control
