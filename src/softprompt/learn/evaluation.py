"""How good a prompt is on rows with known answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from softprompt.artifact import SavedPrompt
from softprompt.backbone.backbone import Backbone
from softprompt.errors import SettingsError
from softprompt.learn import metrics
from softprompt.learn.progress import bar
from softprompt.prompts.head import Head
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.text.examples import Example, ExampleMaker


def evaluate(
    backbone: Backbone,
    prompt: SavedPrompt,
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_size: int = 32,
    progress: bool = True,
) -> dict[str, float]:
    """Metrics of a prompt over rows that hold their answers.

    Returns:
        What the kind of the task has, see `softprompt.learn.metrics`: `loss` always, `accuracy` where labels are given.
        `rows_cut` tells how many rows were shortened.

    Raises:
        MismatchError: the prompt belongs to another backbone.
        RequestError: a row cannot be used; the message names it.
        SettingsError: a batch size below 1.
    """
    if batch_size < 1:
        raise SettingsError(f"batch_size is {batch_size}", where="batch_size", instead="Give a number of 1 or more.")
    prompt.check(backbone, "prompt")
    maker = example_maker(backbone, prompt.task)
    examples = maker.all(rows)
    filling = Filling(prompt.values, {})
    with bar("Evaluating", len(examples), "row", show=progress) as evaluating:
        found = measure(Forward(backbone), maker, examples, filling, batch_size, evaluating.update, prompt.head)
    return found | {"rows_cut": sum(e.cut > 0 for e in examples)}


def measure(
    forward: Forward,
    maker: ExampleMaker,
    examples: Sequence[Example],
    filling: Filling,
    batch_size: int,
    progress: Callable[[int], Any] = lambda rows: None,
    head: Head | None = None,
) -> dict[str, float]:
    """The metrics of `evaluate`, over examples.

    Args:
        maker: what made the examples.
        progress: told how many rows are done, batch by batch.
        head: the trained head, where the task has one.
    """
    # Rows of like length together: less padding, the same metrics.
    order = sorted(examples, key=lambda e: len(e.tokens) + len(e.target))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]

    def counted() -> Any:
        for batch in batches:
            yield batch
            progress(len(batch))

    with torch.no_grad():
        return metrics.OF_KIND[maker.task.kind](forward, counted(), filling, maker.verbalizer, head)
