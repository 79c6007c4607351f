"""Train one prompt: from rows to a saved folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from softprompt import artifact
from softprompt.arguments import check_arguments, check_rows
from softprompt.backbone.backbone import Backbone
from softprompt.errors import DataError, SettingsError
from softprompt.learn.begun import Begun, Start
from softprompt.learn.evaluation import Measured, measure
from softprompt.learn.lengths import check_answers_kept
from softprompt.learn.losses import Loss, loss_for
from softprompt.learn.objective import Objective, Row
from softprompt.learn.order import Shuffled
from softprompt.learn.run import Run, check_place
from softprompt.learn.settings import Settings
from softprompt.learn.worked import worked_before, worked_examples
from softprompt.prompts.head import Head, Headed, without_head
from softprompt.prompts.method import Host, Method, Parametrization, check_fit, resolve_task
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.saved import SavedPrompt, TrainingState
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.task import OF_TOKENS, Task
from softprompt.text.worked import WorkedExamples

HEAD_LEARNING_RATE = 5e-3
"""Of a head, unless a learning rate is given: a rate that is right for a prompt encoder starves it."""


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
    start: Start | None = None,
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
            that of a run that was never interrupted, to the last bit. Begins anew where there is no checkpoint. What
            decides nothing but rounding (`eval_batch_size`, `cache_bytes`) may be changed.
        progress: show progress bars.
        callbacks: of transformers' Trainer: trackers, early stopping.
        start: a saved prompt of the same method to begin from, instead of the method's own start; or a folder of
            prompts, from which `MultitaskPromptTuning` takes their shared prompt and the average of their factors.
        settings: see `Settings`; or give its attributes as keywords (`steps=150`, `learning_rate=5e-3`, ...).

    Raises:
        RequestError: a row, the template, a setting or the output folder cannot be used; nothing was begun.
        DivergenceError: the loss is no longer a number. The last good prompt is saved as `OUTPUT.last-good`; without an
            output it is lost.
        SaveError: the prompt could not be written.
    """
    check_arguments(backbone=backbone, task=task, method=method)
    check_rows(train_rows=train_rows, eval_rows=eval_rows)
    settings = Settings.of(settings, options)
    check_options(method, task, options)
    check_place(output, overwrite=overwrite, resume=resume)
    check_fit(method, task, backbone.kind, backbone.name)
    begun = None if start is None else Begun.of(start, backbone, method)
    if begun is None:
        worked = worked_examples(backbone, task, method, train_rows, settings.seed)
    else:
        worked = worked_before(begun.prompts[0], task, method, begun.where)
    member = Member(backbone, task, method, settings, worked=worked)
    parametrization = member.build()
    if begun is not None:
        member.begin_from(parametrization, begun)
    member.read(train_rows, eval_rows)
    output = None if output is None else Path(output)
    outcome = run_alone(member, parametrization, "Training" if progress else None, callbacks)(
        output, overwrite=overwrite, resume=resume
    )
    return Result(outcome.saved, outcome.saved.metrics, output, outcome.history)


def check_options(method: Method, task: Task, options: Iterable[str]) -> None:
    """See that settings which are given by name have anything to set.

    Raises:
        SettingsError: nothing is learned, and one of them says how.
    """
    idle = sorted(set(options) - set(Settings.MEASURING))
    if idle and not method.LEARNS and not task.outputs:
        raise SettingsError(
            f"a {method.NAME} learns nothing, so it takes no {', '.join(idle)}",
            instead="Leave it out, or use a method that learns.",
        )


def run_alone(
    member: Member, parametrization: Parametrization, title: str | None, callbacks: Sequence[TrainerCallback]
) -> Run[SavedPrompt]:
    """The run of one prompt; arguments as in `Run`."""
    settings = member.settings
    forward = Forward(member.backbone, budget=settings.cache_bytes)
    return Run(
        members=[member],
        parametrization=parametrization,
        forward=forward,
        draw=member.order(0),
        settings=settings,
        prepare=lambda folder, resume: Objective(forward, [member.loss]),
        together=lambda prompts: prompts[0],
        save=lambda prompt, place, overwrite: artifact.save(prompt, place, overwrite=overwrite),
        title=title,
        callbacks=callbacks,
        more={},
    )


class Member:
    """One prompt of a run: its task and its rows, how it is measured, and what of it is saved.

    That the method is for such a task and backbone is checked before; see `check_fit`.

    Attributes:
        name: what it is called beside others; empty where it is alone.
        learns: whether there is anything to train, be it a head alone.
        worked: the worked examples that its prompt is made of, where it is made of such.
        task: with the lengths of all slots.
        maker: makes its examples.
        rows: what it learns from.
        data: the examples of these.
        held_out: those it is measured on.
        start: what is served of it, before the first step, by name.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        method: Method,
        settings: Settings,
        name: str = "",
        worked: WorkedExamples | None = None,
    ) -> None:
        self.backbone, self.method, self.settings, self.name = backbone, method, settings, name
        self.worked = worked
        self.task = resolve_task(task, method, worked)
        self.maker = example_maker(backbone, self.task, inside=method.INSIDE)
        self.learns = method.LEARNS or bool(task.outputs)
        self.learning_rate = settings.learning_rate or method.LEARNING_RATE or HEAD_LEARNING_RATE
        self.rows: Sequence[Mapping[str, Any]] = ()
        self.data: list[Example] = []
        self.held_out: list[Example] = []
        self.start: dict[str, Tensor] = {}

    @property
    def loss(self) -> Loss:
        return loss_for(self.settings, self.task, self.maker.verbalizer)

    def build(self) -> Parametrization:
        """The parameters of this prompt alone, at their starting point."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        made = self.method.build(self.maker.virtual, host(self.backbone, [self.maker], self.worked), generator)
        made = with_heads(made, [self], generator).to(self.backbone.device)
        self.note_start(made, 0)
        return made

    def read(
        self, train_rows: Sequence[Mapping[str, Any]], eval_rows: Sequence[Mapping[str, Any]] | None, of: str = ""
    ) -> None:
        """Make examples of the rows.

        Args:
            of: the task whose rows they are, where there are several.

        Raises:
            RequestError: a row cannot be used; the message names it.
            LengthError: all of them are questions whose answer was cut away.
        """
        if self.settings.eval_every is not None and not eval_rows:
            raise SettingsError(
                f"eval_every is {self.settings.eval_every}, but there are no rows to evaluate on",
                where="eval_every",
                instead="Give some (eval_rows, --eval-data), or leave it out.",
            )
        self.rows, self.data = train_rows, self.maker.all(train_rows)
        self.held_out = self.maker.all(eval_rows) if eval_rows else []
        of = f" of {of}" if of else ""
        if self.learns:
            check_answers_kept(self.maker, self.data, f"training rows{of}", measured=False)
        check_answers_kept(self.maker, self.held_out, f"evaluation rows{of}", measured=True)
        if self.task.kind != "feature-extraction":
            return
        if self.settings.batch_size < 3:
            raise SettingsError(
                f"batch_size is {self.settings.batch_size}, but rows learn what they have in common from each other",
                where="batch_size",
                instead="Give 3 or more; the more, the better.",
            )
        if len({example.label for example in self.data}) == len(self.data):
            raise DataError(
                f"no two rows have the same {self.task.target!r}, so none has anything in common with another",
                instead="Give rows that belong together the same answer.",
            )

    def order(self, number: int) -> Shuffled[Row]:
        """Which of its rows stand in which step, as rows of task `number`."""
        length = (lambda row: row[1].length) if self.settings.group_by_length else None
        rows = [(number, example) for example in self.data]
        return Shuffled(rows, self.settings.batch_size, self.settings.seed, length)

    def lengths(self) -> dict[str, Any]:
        """How many rows there are, how many of them were shortened, and how much of what they ask for was cut away."""
        facts: dict[str, Any] = {}
        for name, examples in (("training", self.data), ("evaluation", self.held_out)):
            facts |= {f"{name}_rows": len(examples), f"{name}_rows_cut": sum(e.cut > 0 for e in examples)}
            if self.task.kind in OF_TOKENS:
                facts[f"{name}_answers_missed"] = sum(len(e.missed) for e in examples)
        return facts

    def begin_from(self, parametrization: Parametrization, begun: Begun) -> None:
        """Take the parameters of saved prompts for the start.

        Raises:
            SettingsError: one is of another shape; or there are more than the method can begin from.
        """
        states = [(saved.task, saved.state.parameters) for saved in begun.prompts if saved.state is not None]
        own = self.task.kind, self.task.labels
        try:
            # A head's outputs are labels: it is of use for the same ones alone.
            parametrization.begin_from(
                [state if (task.kind, task.labels) == own else without_head(state) for task, state in states]
            )
        except SettingsError as error:
            error.where = error.where or begun.where
            raise
        begun.note_heads(self.task)
        # What was learned under other settings may lie outside the bounds of these.
        parametrization.after_step()
        self.note_start(parametrization, 0)

    def note_start(self, parametrization: Parametrization, number: int) -> None:
        """Remember the values before the first step; this prompt is the parametrization's task `number`."""
        # A copy: what `tensors` gives may share memory with the parameters.
        self.start = {name: t.clone() for name, t in self.prompt(parametrization, number, {}, {}).tensors().items()}

    def facts(self, parametrization: Parametrization, number: int) -> dict[str, Any]:
        """What an interrupted run and the one that goes on must have in common of this prompt."""
        state = parametrization.state_of(number).values()
        return {
            "backbone": [self.backbone.fingerprint, self.backbone.tokenizer_fingerprint, str(self.backbone.dtype)],
            "quantized": self.backbone.quantized,
            "quantization": self.backbone.quantization,
            "texts": None if self.backbone.cache is None else self.backbone.cache.dtype,
            "template": self.task.template.source,
            "kind": self.task.kind,
            "labels": [list(self.task.labels), list(self.task.words), self.task.none],
            "field": self.task.field,
            "target": self.task.target,
            "max_length": self.task.max_length,
            "method": self.method.NAME,
            **{f"method's {name}": value for name, value in self.method.settings().items()},
            "training rows": _digest(self.data),
            "evaluation rows": _digest(self.held_out),
            "start": hashlib.sha256(b"".join(t.detach().cpu().numpy().tobytes() for t in state)).hexdigest(),
        }

    def measure(
        self, forward: Forward, parametrization: Parametrization, number: int, progress: Callable[[int], Any]
    ) -> dict[str, float]:
        """The metrics on the rows that are held out."""
        # Compiled for this evaluation only: the values go on changing.
        filling = Filling(parametrization(number), {})
        measured = Measured(self.maker, self.held_out, filling, parametrization.head_for(number))
        return measure(forward, measured, self.settings.eval_batch_size, progress)

    def prompt(
        self, parametrization: Parametrization, number: int, metrics: Mapping[str, float], facts: Mapping[str, Any]
    ) -> SavedPrompt:
        """What is saved."""
        values, head = parametrization(number), parametrization.head_for(number)
        state = {name: t.detach().cpu().clone() for name, t in parametrization.state_of(number).items()}
        return SavedPrompt(
            method=self.method,
            task=self.task,
            values=type(values).from_tensors({name: t.clone() for name, t in values.tensors().items()}),
            backbone_name=self.backbone.name,
            backbone_fingerprint=self.backbone.fingerprint,
            tokenizer_fingerprint=self.backbone.tokenizer_fingerprint,
            dtype=str(self.backbone.dtype).removeprefix("torch."),
            training={**facts, **self._facts_of_worked()},
            metrics=metrics,
            state=TrainingState(state, self.start) if self.learns else None,
            head=None if head is None else Head.from_tensors(head.tensors()),
        )

    def _facts_of_worked(self) -> dict[str, Any]:
        """Which rows, counted from 1, the worked examples are, and how many tokens; None for rows of another run."""
        if self.worked is None:
            return {}
        return {"worked_rows": self.worked.rows and list(self.worked.rows), "worked_tokens": len(self.worked)}


def with_heads(
    parametrization: Parametrization, members: Sequence[Member], generator: torch.Generator
) -> Parametrization:
    """With a head for each member's task, where these have such."""
    width, outputs = members[0].backbone.state_size, [member.task.outputs for member in members]
    if not any(outputs):
        return parametrization
    heads = [Head.random(width, count, generator) if count else None for count in outputs]
    first = members[0]
    rate = 1.0 if first.settings.learning_rate else HEAD_LEARNING_RATE / first.learning_rate
    return Headed(parametrization, heads, rate)


def host(backbone: Backbone, makers: Sequence[ExampleMaker], worked: WorkedExamples | None = None) -> Host:
    """What a method may know of the model.

    Args:
        makers: of the tasks whose prompts it makes.
        worked: the worked examples that the prompt is made of, where it is.
    """
    words = dict.fromkeys(word for maker in makers if maker.verbalizer for word in maker.verbalizer.words)
    tokenizer = backbone.tokenizer
    return Host(
        size=backbone.vocabulary_size,
        width=backbone.hidden_size,
        # Control tokens that have no role of their own (`<repo_name>`, say) are in none of the tokenizer's lists.
        special=frozenset(tokenizer.all_special_ids)
        | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special},
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        embed=lambda ids: backbone.embed(ids.to(backbone.device)).float().cpu(),
        labels=tuple(words),
        sites=backbone.site_shapes,
        attend=backbone.attended if backbone.sites else None,
        worked=worked,
    )


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.tokens, example.target, example.labels, example.reads)).encode())
    return digest.hexdigest()
