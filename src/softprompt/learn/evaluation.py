"""How good a prompt is on rows with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from softprompt.run.forward import Filling, Forward
from softprompt.run.loss import answer_loss
from softprompt.run.score import label_log_probabilities
from softprompt.text.batch import IGNORED
from softprompt.text.examples import Example
from softprompt.text.verbalizer import Verbalizer


def evaluate(
    forward: Forward,
    verbalizer: Verbalizer | None,
    examples: Sequence[Example],
    filling: Filling,
    batch_size: int,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, float]:
    """Metrics of one prompt over examples that hold their answers.

    Args:
        verbalizer: the label words; None for generation.
        progress: told how many rows are done, batch by batch.

    Returns:
        For classification `accuracy`, `macro_f1` and `loss` (cross-entropy among the labels, nats); for generation
        `loss` (nats per token), `perplexity` and `token_accuracy`.
    """
    # Rows of like length together: less padding, the same metrics.
    order = sorted(examples, key=lambda e: len(e.tokens) + len(e.target))
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    measure = _generation if verbalizer is None else _classification
    with torch.inference_mode():
        return measure(forward, verbalizer, batches, filling, progress)


def _classification(
    forward: Forward,
    verbalizer: Verbalizer | None,
    batches: Sequence[Sequence[Example]],
    filling: Filling,
    progress: Callable[[int], None],
) -> dict[str, float]:
    assert verbalizer is not None
    scores, labels = [], []
    for batch in batches:
        scores += label_log_probabilities(forward, batch, [verbalizer] * len(batch), [filling])
        labels += [e.label for e in batch]
        progress(len(batch))
    table, truth = torch.stack(scores), torch.tensor(labels, device=scores[0].device)
    guess = table.argmax(dim=-1)
    return {
        "accuracy": float((guess == truth).float().mean()),
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
    forward: Forward,
    verbalizer: Verbalizer | None,
    batches: Sequence[Sequence[Example]],
    filling: Filling,
    progress: Callable[[int], None],
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
