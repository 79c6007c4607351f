"""How good a prompt is on rows with known answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompt.arguments import check_arguments, check_rows
from softprompt.backbone.backbone import Backbone
from softprompt.checks import check_whole
from softprompt.collection import SavedPrompts
from softprompt.learn import metrics
from softprompt.learn.lengths import check_answers_kept
from softprompt.learn.progress import bar
from softprompt.prompts.head import Head
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.run.score import head_log_probabilities, label_log_probabilities, label_odds
from softprompt.run.vote import applying, choice, mean_log_probabilities
from softprompt.saved import SavedPrompt
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.task import OF_TOKENS


def evaluate(
    backbone: Backbone,
    prompt: SavedPrompt | SavedPrompts,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> dict[str, float]:
    """Metrics of a prompt, or of an ensemble of prompts, over rows that hold their answers.

    Returns:
        What the kind of the task has, see `softprompt.learn.metrics`: `loss` always, `accuracy` for all but generation.
        `rows_cut` tells how many rows were shortened; where words are labelled or questions answered, `answers_missed`
        how many of these got no answer and count as wrong, because they (or the answer) were cut away.

        For an ensemble that chooses labels `accuracy` and F1 are those of the vote and `loss` that of the mean
        probabilities; `mean_probability_accuracy` is that of the label with the highest of these, `NAME.accuracy` that
        of one prompt, and `member_accuracy` the mean of those. One that gives other answers does not do so together:
        its metrics are the means over its prompts.

    Raises:
        MismatchError: the prompt belongs to another backbone.
        RequestError: a row cannot be used; the message names it.
        LengthError: all rows are questions whose answer was cut away.
        SettingsError: a batch size below 1, or a folder of prompts that each have a task of their own.
    """
    check_arguments(backbone=backbone, prompt=prompt)
    check_rows(rows=rows)
    check_whole("batch_size", batch_size)
    prompt.check(backbone, "prompt")
    if isinstance(prompt, SavedPrompts):
        prompt.check_ensemble("prompt")
    prompt.note_quantization(backbone, "prompt")
    saved = dict(prompt.members) if isinstance(prompt, SavedPrompts) else {"": prompt}
    members = {name: Measured.of(backbone, own, rows) for name, own in saved.items()}
    first = next(iter(members.values()))
    check_answers_kept(first.maker, first.examples, "rows", measured=True)
    with bar("Evaluating", len(rows), "row", show=progress) as evaluating:
        found = measure_together(Forward(backbone), members, batch_size, evaluating.update)
    each = list(zip(*(m.examples for m in members.values()), strict=True))
    found["rows_cut"] = sum(any(e.cut > 0 for e in row) for row in each)
    if first.maker.task.kind in OF_TOKENS:
        found["answers_missed"] = sum(max(len(e.missed) for e in row) for row in each)
    return found


@dataclass(frozen=True)
class Measured:
    """A prompt that is measured.

    Attributes:
        maker: what made the examples.
        examples: the rows.
        filling: the prompt.
        head: its trained head, where the task has one.
    """

    maker: ExampleMaker
    examples: Sequence[Example]
    filling: Filling
    head: Head | None

    @classmethod
    def of(cls, backbone: Backbone, prompt: SavedPrompt, rows: Sequence[Mapping[str, Any]]) -> Measured:
        maker = example_maker(backbone, prompt.task, inside=prompt.inside)
        return cls(maker, maker.all(rows), Filling(prompt.values, {}), prompt.head)


def measure_together(
    forward: Forward,
    members: Mapping[str, Measured],
    batch_size: int,
    progress: Callable[[int], Any] = lambda rows: None,
) -> dict[str, float]:
    """The metrics of `evaluate`; those of `measure` where there is one prompt.

    Args:
        members: the prompts by name, with the same rows and labels.
        batch_size: rows that are run at once, each once for every prompt.
        progress: told how many rows are done, batch by batch.
    """
    first, *others = members.values()
    several = first.maker.task.kind == "multi-label"
    if not others or not (several or first.maker.task.classifies):
        return average(
            [measure(forward, first, batch_size, progress), *(measure(forward, o, batch_size) for o in others)]
        )
    order = sorted(range(len(first.examples)), key=lambda i: len(first.examples[i].tokens))
    scored = []
    size = max(1, batch_size // len(members))
    with torch.no_grad():
        for start in range(0, len(order), size):
            part = order[start : start + size]
            scores = _scores(forward, list(members.values()), part)
            scored.append(torch.stack(scores).view(len(members), len(part), -1))
            progress(len(part))
    table = torch.cat(scored, dim=1)
    together = _of_several if several else _of_one
    found, by_mean, each = together(table, [first.examples[i] for i in order])
    right = each.double().mean(dim=1).tolist()
    return {
        **found,
        "mean_probability_accuracy": float(by_mean.double().mean()),
        "member_accuracy": sum(right) / len(right),
        **{f"{name}.accuracy": own for name, own in zip(members, right, strict=True)},
    }


def _of_one(table: Tensor, examples: Sequence[Example]) -> tuple[dict[str, float], Tensor, Tensor]:
    """Metrics of the vote on one label a row; and which rows are right by the mean `[B]`, and by each prompt `[N, B]`.

    Args:
        table: `[N, B, C]` log-probabilities by N prompts.
    """
    truth = torch.tensor([e.label for e in examples], device=table.device)
    found = metrics.of_labels(choice(table), mean_log_probabilities(table), truth)
    return found, choice(table, "mean") == truth, table.argmax(dim=-1) == truth


def _of_several(table: Tensor, examples: Sequence[Example]) -> tuple[dict[str, float], Tensor, Tensor]:
    """As `_of_one` where several labels may apply: `table` holds log-odds, and a row is right with all of them."""
    labels = range(table.shape[-1])
    truth = torch.tensor([[label in e.labels for label in labels] for e in examples], device=table.device)
    found = metrics.of_several(applying(table), table.sigmoid().mean(dim=0).logit(), truth)
    return found, (applying(table, "mean") == truth).all(dim=-1), ((table > 0) == truth).all(dim=-1)


def _scores(forward: Forward, members: Sequence[Measured], part: Sequence[int]) -> list[Tensor]:
    """Log-probabilities `[C]` of the labels of these rows (log-odds where several may apply), in one batch: all of the
    first prompt's first."""
    examples = [m.examples[i] for m in members for i in part]
    which = [k for k in range(len(members)) for _ in part]
    fillings = [m.filling for m in members]
    heads = [m.head for m in members for _ in part if m.head is not None]
    if heads:
        return [row[-1] for row in head_log_probabilities(forward, examples, heads, fillings, which)]
    verbalizers = [m.maker.verbalizer for m in members for _ in part if m.maker.verbalizer is not None]
    scores = label_odds if members[0].maker.task.kind == "multi-label" else label_log_probabilities
    return scores(forward, examples, verbalizers, fillings, which)


def average(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric that all have, the mean."""
    common = [name for name in metrics[0] if all(name in own for own in metrics)]
    return {name: sum(own[name] for own in metrics) / len(metrics) for name in common}


def measure(
    forward: Forward,
    measured: Measured,
    batch_size: int,
    progress: Callable[[int], Any] = lambda rows: None,
) -> dict[str, float]:
    """The metrics of one prompt.

    Args:
        progress: told how many rows are done, batch by batch.
    """
    # Rows of like length together: less padding, the same metrics.
    order = sorted(measured.examples, key=lambda e: e.length)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def counted() -> Iterator[Sequence[Example]]:
        for batch in batches:
            yield batch
            progress(len(batch))

    with torch.no_grad():
        return metrics.OF_KIND[measured.maker.task.kind](
            forward, counted(), measured.filling, measured.maker.verbalizer, measured.head
        )
