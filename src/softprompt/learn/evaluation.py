"""How good a prompt is on rows with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from softprompt.artifact import SavedPrompt
from softprompt.backbone.backbone import Backbone
from softprompt.errors import SettingsError
from softprompt.learn.progress import bar
from softprompt.run.forward import Filling, Forward
from softprompt.run.loss import answer_loss
from softprompt.run.score import label_log_probabilities
from softprompt.text.batch import IGNORED
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.verbalizer import Verbalizer


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
        For classification `accuracy`, `macro_f1` and `loss` (cross-entropy among the labels, nats); for generation
        `loss` (nats per token), `perplexity` and `token_accuracy`. `rows_cut` tells how many rows were shortened.

    Raises:
        MismatchError: the prompt belongs to another backbone.
        RequestError: a row cannot be used; the message names it.
        SettingsError: a batch size below 1.
    """
    if batch_size < 1:
        raise SettingsError(f"batch_size is {batch_size}", where="batch_size", instead="Give a number of 1 or more.")
    prompt.check(backbone, "prompt")
    maker = ExampleMaker(prompt.task, backbone.tokenizer, backbone.positions)
    examples = maker.all(rows)
    filling = Filling(prompt.values, {})
    with bar("Evaluating", len(examples), "row", show=progress) as evaluating:
        metrics = measure(Forward(backbone), maker.verbalizer, examples, filling, batch_size, evaluating.update)
    return metrics | {"rows_cut": sum(e.cut > 0 for e in examples)}


def measure(
    forward: Forward,
    verbalizer: Verbalizer | None,
    examples: Sequence[Example],
    filling: Filling,
    batch_size: int,
    progress: Callable[[int], Any] = lambda rows: None,
) -> dict[str, float]:
    """The metrics of `evaluate`, over examples.

    Args:
        verbalizer: the label words; None for generation.
        progress: told how many rows are done, batch by batch.
    """
    # Rows of like length together: less padding, the same metrics.
    order = sorted(examples, key=lambda e: len(e.tokens) + len(e.target))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    with torch.no_grad():
        if verbalizer is None:
            return _generation(forward, batches, filling, progress)
        return _classification(forward, verbalizer, batches, filling, progress)


def _classification(
    forward: Forward,
    verbalizer: Verbalizer,
    batches: Sequence[Sequence[Example]],
    filling: Filling,
    progress: Callable[[int], Any],
) -> dict[str, float]:
    scores, labels = [], []
    for batch in batches:
        scores += label_log_probabilities(forward, batch, [verbalizer] * len(batch), [filling])
        labels += [e.label for e in batch]
        progress(len(batch))
    table, truth = torch.stack(scores), torch.tensor(labels, device=scores[0].device)
    guess = table.argmax(dim=-1)
    return {
        "accuracy": float((guess == truth).double().mean()),
        "macro_f1": _macro_f1(guess, truth, len(verbalizer.labels)),
        "loss": float(F.nll_loss(table, truth)),
    }


def _macro_f1(guess: torch.Tensor, truth: torch.Tensor, classes: int) -> float:
    """Mean F1 over the labels that occur among answers or guesses."""
    scores = []
    for label in range(classes):
        said, is_ = guess == label, truth == label
        if bool((said | is_).any()):
            scores.append(2 * int((said & is_).sum()) / (int(said.sum()) + int(is_.sum())))
    return sum(scores) / len(scores)


def _generation(
    forward: Forward, batches: Sequence[Sequence[Example]], filling: Filling, progress: Callable[[int], Any]
) -> dict[str, float]:
    total, right, count = 0.0, 0, 0
    for batch in batches:
        logits, targets = forward(batch, [filling])
        tokens = int((targets != IGNORED).sum())
        total += float(answer_loss(logits, targets)) * tokens
        right += int((logits.argmax(dim=-1) == targets).sum())
        count += tokens
        progress(len(batch))
    loss = total / count
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "token_accuracy": right / count}
