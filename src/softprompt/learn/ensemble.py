"""Train several prompts of one task, each from a seed of its own, in one batch a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from softprompt.arguments import check_arguments, check_rows
from softprompt.backbone.backbone import Backbone
from softprompt.collection import SavedPrompts, save_all
from softprompt.errors import SettingsError
from softprompt.learn.evaluation import Measured, average, measure_together
from softprompt.learn.objective import Objective, Row
from softprompt.learn.progress import bar
from softprompt.learn.run import Run, check_place
from softprompt.learn.settings import Settings
from softprompt.learn.training import Member
from softprompt.learn.worked import worked_examples
from softprompt.prompts.method import Method, check_fit
from softprompt.prompts.several import Several
from softprompt.run.forward import Filling, Forward
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task


@dataclass(frozen=True)
class EnsembleResult:
    """What training an ensemble yields.

    Attributes:
        prompts: all of them, as they are saved, by the names `seed-S`.
        metrics: of the ensemble on the evaluation rows, as `evaluate` gives them; the last training loss, the mean over
            the prompts, where there are no such rows.
        path: the folder they were saved to, or None.
        history: what was logged, in order: the means over the prompts; `eval_seed-S.accuracy` is that of one.
    """

    prompts: SavedPrompts
    metrics: Mapping[str, float]
    path: Path | None
    history: Sequence[Mapping[str, float]]


def train_ensemble(
    backbone: Backbone,
    task: Task,
    method: Method,
    train_rows: Sequence[Mapping[str, Any]],
    eval_rows: Sequence[Mapping[str, Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 5,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    settings: Settings | None = None,
    **options: Any,
) -> EnsembleResult:
    """Train prompts of several seeds at once (Lester et al. 2021, arXiv 2104.08691, section 6); of any method.

    Each prompt becomes what `train(..., seed=S)` would make of it, but for rounding: it has its own start, its own
    order of the rows, its gradients are clipped by themselves, and its own best evaluation is kept. What is shared is
    the frozen model: one batch a step, of `batch_size` rows for each prompt, and texts that are read once for all.
    Deviation: the paper trains its prompts one after the other, and runs them as one batch when they answer.

    Args:
        backbone, task, method, train_rows, eval_rows: as in `train`.
        seeds: of each prompt; a number takes so many from that of the settings on.
        output: the folder to save to: each prompt in a folder, `OUTPUT/seed-S`. `Engine.add` takes it as one prompt
            whose label is voted on.
        overwrite, resume, progress, callbacks: as in `train`.
        settings: see `Settings`; or give its attributes as keywords.

    Raises:
        RequestError: as in `train`; or there are fewer than two seeds, or one of them twice.
        DivergenceError: the loss of one is no longer a number. The last good prompts are saved as `OUTPUT.last-good`.
        SaveError: the prompts could not be written.
    """
    check_arguments(backbone=backbone, task=task, method=method)
    check_rows(train_rows=train_rows, eval_rows=eval_rows)
    settings = Settings.of(settings, options)
    if not method.LEARNS and not task.outputs:
        raise SettingsError(
            f"a {method.NAME} learns nothing, so every seed gives the same",
            where="method",
            instead="Use a method that learns.",
        )
    each = [replace(settings, seed=seed) for seed in check_seeds(seeds, settings)]
    check_place(output, overwrite=overwrite, resume=resume)
    check_fit(method, task, backbone.kind, backbone.name)
    members = [
        Member(
            backbone,
            task,
            method,
            own,
            f"seed-{own.seed}",
            worked_examples(backbone, task, method, train_rows, own.seed),
        )
        for own in each
    ]
    parametrization = Several([member.build() for member in members])
    first = members[0]
    first.read(train_rows, eval_rows)
    for member in members[1:]:
        if member.task == first.task:
            member.data, member.held_out = first.data, first.held_out
        else:
            member.read(train_rows, eval_rows)
    orders = [member.order(number) for number, member in enumerate(members)]

    def draw(step: int) -> list[Row]:
        return [row for order in orders for row in order(step)]

    forward = Forward(backbone, budget=settings.cache_bytes)

    def together(prompts: Sequence[SavedPrompt]) -> SavedPrompts:
        named = dict(zip((member.name for member in members), prompts, strict=True))
        facts = {**settings.facts(), "learning_rate": first.learning_rate, "seed": [own.seed for own in each]}
        metrics = average([prompt.metrics for prompt in prompts])
        if first.held_out and metrics:  # those that are left of a run that diverged have not been measured
            measured = {
                member.name: Measured(member.maker, member.held_out, Filling(prompt.values, {}), prompt.head)
                for member, prompt in zip(members, prompts, strict=True)
            }
            with bar("Evaluating", len(first.held_out), "row", show=progress, leave=False) as evaluating:
                metrics = measure_together(forward, measured, settings.eval_batch_size, evaluating.update)
        return SavedPrompts("ensemble", named, facts, metrics)

    run = Run(
        members=members,
        parametrization=parametrization,
        forward=forward,
        draw=draw,
        settings=settings,
        prepare=lambda folder, resume: Objective(forward, [member.loss for member in members]),
        together=together,
        save=lambda prompts, place, overwrite: save_all(prompts, place, overwrite=overwrite),
        title="Training" if progress else None,
        callbacks=callbacks,
        more={"seed": [own.seed for own in each]},
    )
    output = None if output is None else Path(output)
    outcome = run(output, overwrite=overwrite, resume=resume)
    return EnsembleResult(outcome.saved, outcome.saved.metrics, output, outcome.history)


def check_seeds(seeds: int | Sequence[int], settings: Settings) -> list[int]:
    """The seed of each prompt.

    Raises:
        SettingsError: there are fewer than two, or one of them twice, or one is no seed.
    """
    found = list(range(settings.seed, settings.seed + seeds)) if isinstance(seeds, int) else list(seeds)
    if len(found) < 2 or isinstance(seeds, bool):
        raise SettingsError(
            f"seeds is {seeds!r}", where="seeds", instead="Give a number of 2 or more, or a list of seeds."
        )
    for seed in found:
        replace(settings, seed=seed)
    if len(set(found)) < len(found):
        raise SettingsError(f"a seed stands twice in {found}", where="seeds", instead="Each makes one prompt.")
    return found
