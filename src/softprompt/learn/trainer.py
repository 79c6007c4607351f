"""The training loop of one prompt: transformers' Trainer over a module that holds the prompt's parameters alone."""

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
from softprompt.learn.objective import Objective, Row
from softprompt.learn.progress import TrainingBar
from softprompt.learn.settings import Settings
from softprompt.prompts.method import Parametrization


class Learner(nn.Module):
    """What is trained, and what is kept: the parameters, and their copy at the best evaluation so far.

    Both are in its state, so a checkpoint holds both and an interrupted run forgets nothing. The backbone is not: it
    stays out of checkpoints, optimizer and train mode.

    Attributes:
        parametrization: the parameters.
        best: a copy of it, as it was at the best evaluation.
        score: `[2]` float64, accuracy and negative loss of that evaluation; -inf before the first.
    """

    score: Tensor

    def __init__(self, parametrization: Parametrization, objective: Objective) -> None:
        super().__init__()
        self.parametrization = parametrization
        self.best = copy.deepcopy(parametrization).requires_grad_(False)
        self.register_buffer("score", torch.full((2,), float("-inf"), dtype=torch.float64))
        self._objective = objective

    def forward(self, rows: Sequence[Row]) -> Tensor:
        """The loss over a step's rows, a scalar."""
        return self._objective(self.parametrization, rows)

    def keep(self, metrics: Mapping[str, float]) -> bool:
        """Remember the parameters as they are, unless an evaluation was as good; tells whether it did.

        Of two evaluations with the same accuracy the one with the smaller loss is better.
        """
        score = [metrics.get("accuracy", 0.0), -metrics["loss"]]
        if score <= self.score.tolist():
            return False
        self.score.copy_(torch.tensor(score, dtype=torch.float64))
        self.best.load_state_dict(self.parametrization.state_dict())
        return True

    @property
    def outcome(self) -> Parametrization:
        """What is saved: the best evaluation's parameters, or the last where there was no evaluation."""
        return self.best if bool(torch.isfinite(self.score).all()) else self.parametrization


class LearnerTrainer(Trainer):
    """transformers' Trainer with our rows, our evaluation, and an end as soon as the loss is no number.

    Args:
        learner: what is trained.
        settings: how.
        learning_rate: of AdamW.
        draw: the rows of each step, from 0.
        folder: for checkpoints.
        measure: the metrics of a prompt as it stands; None where there is nothing to measure on.
        best_by: the metric by which transformers' own bookkeeping calls an evaluation the best.
        device: where the backbone is.
        progress: whether to show a bar.
        callbacks: more of them.
    """

    def __init__(
        self,
        learner: Learner,
        settings: Settings,
        learning_rate: float,
        draw: Callable[[int], Sequence[Row]],
        folder: Path,
        measure: Callable[[Parametrization], Mapping[str, float]] | None,
        *,
        best_by: str,
        device: torch.device,
        progress: bool,
        callbacks: Sequence[TrainerCallback],
    ) -> None:
        self.learner = learner
        self._measure = measure
        self.kept: Mapping[str, float] | None = None
        self.last_good: dict[str, Tensor] | None = None
        """The parameters with which the loss was last a number."""
        log_every = max(1, settings.steps // 30)
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=settings.steps,
            per_device_train_batch_size=1,
            learning_rate=learning_rate,
            lr_scheduler_type=settings.schedule,
            warmup_steps=int(settings.warmup * settings.steps),
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
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
                _Watch(self),
                *([_LastEvaluation()] if measure else []),
                *([TrainingBar()] if progress else []),
                *callbacks,
            ],
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        # What stands in a step is shuffled already.
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        groups = [
            {"params": parameters, "name": name} for name, parameters in self.learner.parametrization.groups().items()
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Tensor:
        loss = model(**inputs)
        if not bool(torch.isfinite(loss)):
            raise _diverged(f"the loss is {float(loss.detach())}", self.state.global_step + 1)
        self.remember()
        return loss

    def remember(self) -> None:
        """Take the parameters, as they are, for good ones."""
        self.last_good = {k: v.clone() for k, v in self.learner.parametrization.state_dict().items()}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the prompt as it stands, log it, and keep it if it is the best."""
        assert self._measure is not None, "evaluations were asked for"
        metrics = self._measure(self.learner.parametrization)
        if not math.isfinite(metrics["loss"]):
            raise _diverged(f"the loss on the evaluation rows is {metrics['loss']}", self.state.global_step)
        if self.learner.keep(metrics):
            self.kept = metrics
        logged = {f"eval_{name}": value for name, value in metrics.items()}
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
    """Lets the method have its say after each update (projections, bounds), and sees that it left numbers behind."""

    def __init__(self, trainer: LearnerTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # By now a checkpoint has been read: what it holds is good.
        self._trainer.remember()

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
