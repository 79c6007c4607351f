"""How good a prompt is on rows with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from softprompt.artifact import SavedPrompt
from softprompt.backbone.backbone import Backbone
from softprompt.collection import SavedPrompts
from softprompt.errors import SettingsError
from softprompt.learn.progress import bar
from softprompt.run.forward import Filling, Forward
from softprompt.run.loss import answer_loss
from softprompt.run.score import label_log_probabilities
from softprompt.run.vote import choice, mean_log_probabilities
from softprompt.text.batch import IGNORED
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.verbalizer import Verbalizer


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
        For classification `accuracy`, `macro_f1` and `loss` (cross-entropy among the labels, nats); for generation
        `loss` (nats per token), `perplexity` and `token_accuracy`. `rows_cut` tells how many rows were shortened.

        For an ensemble's classification `accuracy` and `macro_f1` are those of the vote and `loss` that of the mean
        probabilities; `mean_probability_accuracy` is that of the label with the highest of these, `NAME.accuracy` that
        of one prompt, and `member_accuracy` the mean of those. An ensemble that generates does not do so together: its
        metrics are the means over its prompts.

    Raises:
        MismatchError: the prompt belongs to another backbone.
        RequestError: a row cannot be used; the message names it.
        SettingsError: a batch size below 1, or a folder of prompts that each have a task of their own.
    """
    if batch_size < 1:
        raise SettingsError(f"batch_size is {batch_size}", where="batch_size", instead="Give a number of 1 or more.")
    prompt.check(backbone, "prompt")
    if isinstance(prompt, SavedPrompts):
        prompt.check_ensemble("prompt")
    members = dict(prompt.members) if isinstance(prompt, SavedPrompts) else {"": prompt}
    makers = [ExampleMaker(member.task, backbone.tokenizer, backbone.positions) for member in members.values()]
    examples = [maker.all(rows) for maker in makers]
    fillings = {name: Filling(member.values, {}) for name, member in members.items()}
    with bar("Evaluating", len(rows), "row", show=progress) as evaluating:
        metrics = measure_together(Forward(backbone), makers, examples, fillings, batch_size, evaluating.update)
    return metrics | {"rows_cut": sum(any(e.cut > 0 for e in row) for row in zip(*examples, strict=True))}


def measure_together(
    forward: Forward,
    makers: Sequence[ExampleMaker],
    examples: Sequence[Sequence[Example]],
    fillings: Mapping[str, Filling],
    batch_size: int,
    progress: Callable[[int], Any] = lambda rows: None,
) -> dict[str, float]:
    """The metrics of `evaluate`, over examples; those of `measure` where there is one prompt.

    Args:
        makers: of each prompt's task; all have the same labels.
        examples: for each prompt the same rows.
        fillings: the prompts by name.
        batch_size: rows that are run at once, each once for every prompt.
        progress: told how many rows are done, batch by batch.
    """
    verbalizers = [maker.verbalizer for maker in makers if maker.verbalizer is not None]
    if len(fillings) == 1 or not verbalizers:
        progress_of_all = iter([progress, *[lambda rows: None] * len(fillings)])
        return average(
            [
                measure(forward, maker.verbalizer, own, filling, batch_size, next(progress_of_all))
                for maker, own, filling in zip(makers, examples, fillings.values(), strict=True)
            ]
        )
    order = sorted(range(len(examples[0])), key=lambda i: len(examples[0][i].tokens))
    found = []
    size, members = max(1, batch_size // len(fillings)), range(len(fillings))
    with torch.no_grad():
        for start in range(0, len(order), size):
            part = order[start : start + size]
            scores = label_log_probabilities(
                forward,
                [examples[k][i] for k in members for i in part],
                [verbalizers[k] for k in members for _ in part],
                list(fillings.values()),
                [k for k in members for _ in part],
            )
            found.append(torch.stack(scores).view(len(fillings), len(part), -1))
            progress(len(part))
    each = torch.cat(found, dim=1)
    truth = torch.tensor([examples[0][i].label for i in order], device=each.device)
    right = (each.argmax(dim=-1) == truth).double().mean(dim=1).tolist()
    return {
        **_of_labels(choice(each), mean_log_probabilities(each), truth),
        "mean_probability_accuracy": float((choice(each, "mean") == truth).double().mean()),
        "member_accuracy": sum(right) / len(right),
        **{f"{name}.accuracy": own for name, own in zip(fillings, right, strict=True)},
    }


def average(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each metric that all have, the mean."""
    common = [name for name in metrics[0] if all(name in own for own in metrics)]
    return {name: sum(own[name] for own in metrics) / len(metrics) for name in common}


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
    table = torch.stack(scores)
    return _of_labels(table.argmax(dim=-1), table, torch.tensor(labels, device=table.device))


def _of_labels(guess: torch.Tensor, table: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Metrics of labels `[N]` that were chosen, and of log-probabilities `[N, C]`, against the true ones `[N]`."""
    return {
        "accuracy": float((guess == truth).double().mean()),
        "macro_f1": _macro_f1(guess, truth, table.shape[1]),
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
