"""Train prompts of several tasks that share a part: the first stage of multitask prompt tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from softprompt.arguments import check_arguments, check_rows
from softprompt.backbone.backbone import Backbone
from softprompt.checks import check_kind, check_whole
from softprompt.collection import SavedPrompts, check_names, save_all
from softprompt.errors import SettingsError, SoftpromptError
from softprompt.learn.evaluation import average
from softprompt.learn.objective import Objective
from softprompt.learn.order import Mixed
from softprompt.learn.run import Run, check_place
from softprompt.learn.settings import Settings
from softprompt.learn.teachers import Given, Teaching, teacher_settings
from softprompt.learn.training import Member, host, with_heads
from softprompt.prompts.method import Method, Parametrization, check_fit, count, shares_nothing
from softprompt.run.forward import Forward
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task

DISTILL = 0.9
"""Weight of the teachers in the loss: the value that is found for the paper's lambda, though not with certainty."""

MIXING_LIMIT = 2**18
"""Rows of a task that count for its mixing rate, at most; Raffel et al. (2020) try limits from 2^16 to 2^21."""


@dataclass(frozen=True)
class Source:
    """One of several tasks that are trained together.

    Attributes:
        task: template and labels. A template without a slot gets one in front.
        rows: each with the template's fields and the answer.
        eval_rows: rows to measure on; for all sources, or for none.
        teacher: a prompt of this task that is to be learned from, of any method and with any template; None to have
            one trained first.

    Raises:
        RequestError: the task is none, or rows are no rows.
    """

    task: Task
    rows: Sequence[Mapping[str, Any]]
    eval_rows: Sequence[Mapping[str, Any]] | None = None
    teacher: Given = None

    def __post_init__(self) -> None:
        check_arguments(task=self.task)
        check_rows(rows=self.rows, eval_rows=self.eval_rows)
        if self.teacher is not None:
            check_kind(
                "teacher", self.teacher, (str, Path, SavedPrompt), "Give a prompt's folder, or the prompt itself."
            )


@dataclass(frozen=True)
class SourcesResult:
    """What training on several tasks yields.

    Attributes:
        prompts: all of them, as they are saved.
        metrics: the means, over the tasks, of the metrics that all of them have; those of each are in its prompt.
        path: the folder they were saved to, or None.
        history: what was logged, in order; `eval_NAME.accuracy` is that of a task.
    """

    prompts: SavedPrompts
    metrics: Mapping[str, float]
    path: Path | None
    history: Sequence[Mapping[str, float]]


def train_sources(
    backbone: Backbone,
    sources: Mapping[str, Source],
    method: Method,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    distill: float = DISTILL,
    teacher_steps: int | None = None,
    teacher_learning_rate: float | None = None,
    mixing_limit: int = MIXING_LIMIT,
    settings: Settings | None = None,
    **options: Any,
) -> SourcesResult:
    """Train a prompt for each of several tasks, a part of which they share (Wang et al. 2023, arXiv 2303.02861, 3.2).

    Each task first has a teacher: a prompt of its own, given or trained here by plain prompt tuning with the same init.
    What is then made small is `task loss + distill * (KL(teacher || student) + MSE of the last hidden states)`,
    both at the positions of the answers; see `Teachers` for what the paper does there. A step holds rows of K' of the K
    tasks, in one batch; see `Mixed`.

    The state with the best mean over the tasks is kept: of their accuracies where all of them have one, else of their
    losses. A target task then begins from all of them: `train(..., start=output)`.

    Args:
        backbone: the frozen model.
        sources: the tasks by name; two or more. Their templates and labels may differ, but not how many virtual tokens
            their slots have together.
        method: one that shares something, such as `MultitaskPromptTuning`.
        output: the folder to save to: a prompt in a folder for each task, `OUTPUT/NAME`. Checkpoints, and the teachers
            that are trained here, stand beside it in `OUTPUT.checkpoints` until training is through. To keep a teacher,
            train it with `train`, and give it.
        overwrite, resume, progress: as in `train`.
        callbacks: of transformers' Trainer, in the training of the students.
        distill: weight of the teachers, lambda in the paper; 0 trains without any.
        teacher_steps: optimizer updates for each teacher that is trained; as many as the students have unless given.
        teacher_learning_rate: that of the students unless given.
        mixing_limit: rows of a task that count for its mixing rate, at most.
        settings: see `Settings`; or give its attributes as keywords.

    Raises:
        RequestError: a source, a row, a teacher, a setting or the output cannot be used; nothing was begun.
        DivergenceError: the loss is no longer a number. The last good prompts are saved as `OUTPUT.last-good`.
        SaveError: the prompts could not be written.
    """
    check_arguments(backbone=backbone, sources=sources, method=method)
    settings = Settings.of(settings, options)
    check_sources(
        list(sources),
        method,
        settings,
        distill=distill,
        teacher_steps=teacher_steps,
        teacher_learning_rate=teacher_learning_rate,
        mixing_limit=mixing_limit,
    )
    check_place(output, overwrite=overwrite, resume=resume)
    for name, source in sources.items():
        check_kind(f"source {name}", source, (Source,), "Give Source(task, rows).")
        check_fit(method, source.task, backbone.kind, backbone.name)
    members = [Member(backbone, source.task, method, settings, name) for name, source in sources.items()]
    _check_lengths(members)
    for member, source in zip(members, sources.values(), strict=True):
        _read(member, source)
    _check_eval_rows(members)
    _check_reads(members)
    teachers = [source.teacher for source in sources.values()]
    taught_by = teacher_settings(settings, teacher_steps, teacher_learning_rate)
    teaching = Teaching(members, teachers, taught_by, distill, progress=progress) if distill else None
    if teaching is None and any(teacher is not None for teacher in teachers):
        raise SettingsError(
            "teachers are given, but distill is 0: nothing would be learned from them",
            where="distill",
            instead="Give a positive number, or no teachers.",
        )
    forward = Forward(backbone, budget=settings.cache_bytes)
    rows = [[(number, example) for example in member.data] for number, member in enumerate(members)]
    facts = {"mixing_limit": mixing_limit, **(teaching.facts() if teaching else {"distill": 0.0})}

    def prepare(folder: Path, resume: bool) -> Objective:
        more = teaching.prepare(forward, folder, resume=resume) if teaching else None
        return Objective(forward, [member.loss for member in members], more)

    built = _built(members, settings.seed)

    def together(prompts: Sequence[SavedPrompt]) -> SavedPrompts:
        taught = teaching.prompts if teaching else {}
        return SavedPrompts(
            "sources",
            dict(zip(sources, prompts, strict=True)),
            {
                **settings.facts(),
                "learning_rate": members[0].learning_rate,
                **facts,
                "teachers": {name: dict(t.metrics) for name, t in taught.items()},
                "trained_parameters_of_all_tasks": count(list(built.parameters())),
            },
            average([prompt.metrics for prompt in prompts]),
        )

    run = Run(
        members=members,
        parametrization=built,
        forward=forward,
        draw=Mixed(rows, settings.batch_size, settings.seed, mixing_limit),
        settings=settings,
        prepare=prepare,
        together=together,
        save=lambda prompts, place, overwrite: save_all(prompts, place, overwrite=overwrite),
        title="Training" if progress else None,
        callbacks=callbacks,
        more=facts,
    )
    output = None if output is None else Path(output)
    outcome = run(output, overwrite=overwrite, resume=resume)
    return SourcesResult(outcome.saved, outcome.saved.metrics, output, outcome.history)


def check_sources(
    names: Sequence[str],
    method: Method,
    settings: Settings,
    *,
    distill: float = DISTILL,
    teacher_steps: int | None = None,
    teacher_learning_rate: float | None = None,
    mixing_limit: int = MIXING_LIMIT,
) -> None:
    """See, before a model is loaded, that tasks can be trained together; arguments as in `train_sources`.

    Raises:
        SettingsError: there are too few tasks, or too many for a batch; or a name, the method or a setting cannot be
            used.
    """
    if not method.SHARES:
        raise shares_nothing(method)
    if len(names) < 2:
        raise SettingsError(
            f"there is {'one source' if names else 'no source'}",
            where="sources",
            instead="Give two or more; one task is trained with train.",
        )
    check_names(names, "sources")
    if settings.batch_size < len(names):
        raise SettingsError(
            f"batch_size is {settings.batch_size}, but a step may hold rows of all {len(names)} sources",
            where="batch_size",
            instead=f"Give {len(names)} or more.",
        )
    check_whole("mixing_limit", mixing_limit)
    if settings.group_by_length:
        raise SettingsError(
            "a step of several tasks takes its rows as their shares ask",
            where="group_by_length",
            instead="Leave it out.",
        )
    if isinstance(distill, bool) or not isinstance(distill, (int, float)) or not 0 <= distill < float("inf"):
        raise SettingsError(f"distill is {distill!r}", where="distill", instead="Give a number of 0 (off) or more.")
    if not distill and (teacher_steps is not None or teacher_learning_rate is not None):
        raise SettingsError(
            "it says how teachers are trained, but distill is 0: there are none",
            where="teacher_steps" if teacher_steps is not None else "teacher_learning_rate",
            instead="Leave it out, or give a positive distill.",
        )
    teacher_settings(settings, teacher_steps, teacher_learning_rate)


def _check_lengths(members: Sequence[Member]) -> None:
    first = members[0]
    for member in members[1:]:
        if member.maker.virtual != first.maker.virtual:
            raise SettingsError(
                f"its slots have {member.maker.virtual} virtual tokens together, those of {first.name} have "
                f"{first.maker.virtual}",
                where=f"source {member.name}",
                instead="What tasks share has one length: give their slots as many in all.",
            )


def _check_reads(members: Sequence[Member]) -> None:
    """An encoder-decoder runs its decoder for a batch, or does not."""
    written = {member.name: member.data[0].reads is None for member in members}
    if members[0].backbone.kind == "encoder-decoder" and len(set(written.values())) > 1:
        kinds = ", ".join(f"{member.name} ({member.task.kind})" for member in members)
        raise SettingsError(
            f"some are answered by the decoder and some in the encoder, which cannot be one batch: {kinds}",
            where="sources",
            instead="Train those that are read in the encoder (words, spans, vectors) by themselves.",
        )


def _check_eval_rows(members: Sequence[Member]) -> None:
    without = [member.name for member in members if not member.held_out]
    if 0 < len(without) < len(members):
        raise SettingsError(
            "it has no rows to measure on, others have",
            where=f"source {without[0]}",
            instead="Give eval_rows for all sources, or for none.",
        )


def _read(member: Member, source: Source) -> None:
    try:
        member.read(source.rows, source.eval_rows, of=member.name)
    except SoftpromptError as error:
        error.where = f"source {member.name}" + (f", {error.where}" if error.where else "")
        raise


def _built(members: Sequence[Member], seed: int) -> Parametrization:
    """The parameters of all prompts, at their starting point."""
    first = members[0]
    known = host(first.backbone, [member.maker for member in members])
    generator = torch.Generator().manual_seed(seed)
    made = first.method.build_for(len(members), first.maker.virtual, known, generator)
    made = with_heads(made, members, generator).to(first.backbone.device)
    for number, member in enumerate(members):
        member.note_start(made, number)
    return made
