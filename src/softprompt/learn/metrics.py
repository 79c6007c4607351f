"""The metrics of each kind of task.

| kind | metrics |
|---|---|
| classification, sequence-classification | `accuracy`, `macro_f1`, `loss` (cross-entropy among the labels, nats) |
| multi-label | `accuracy` (rows with exactly the right labels), `micro_f1`, `macro_f1`, `loss` (a label, nats) |
| generation | `loss` (nats per token), `perplexity`, `token_accuracy` |
| token-classification | `accuracy` (of words), `macro_f1`, `loss` (a word, nats) |
| question-answering | `accuracy` (answers that are exactly right), `f1` (of their tokens, mean), `loss` |
| feature-extraction | `accuracy` (rows whose nearest other row is of their kind), `loss` |

Words that were cut away, or of which the tokenizer makes nothing, have no label and count as wrong; so do answers to
questions that were cut away. The loss is that of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.prompts.head import Head
from softprompt.run.forward import Filling, Forward
from softprompt.run.loss import answer_loss, likeness_loss, odds_loss, span_loss
from softprompt.run.score import (
    best_span,
    head_log_probabilities,
    head_outputs,
    label_log_probabilities,
    label_odds,
    row_vectors,
)
from softprompt.text.answers import BEGINS, ENDS
from softprompt.text.batch import IGNORED
from softprompt.text.examples import Example
from softprompt.text.task import Kind
from softprompt.text.verbalizer import Verbalizer

Batches = Iterable[Sequence[Example]]
Measure = Callable[[Forward, Batches, Filling, Any, Any], dict[str, float]]


def _classification(
    forward: Forward, batches: Batches, filling: Filling, verbalizer: Verbalizer | None, head: Head | None
) -> dict[str, float]:
    scores: list[Tensor] = []
    labels: list[int | None] = []
    for batch in batches:
        if head is not None:
            rows = head_log_probabilities(forward, batch, [head] * len(batch), [filling])
            scores += [row[-1] for row in rows]
        else:
            assert verbalizer is not None, "it has label words, or a head"
            scores += label_log_probabilities(forward, batch, [verbalizer] * len(batch), [filling])
        labels += [e.label for e in batch]
    return _likeliest(torch.stack(scores), torch.tensor(labels))


def _token_classification(
    forward: Forward, batches: Batches, filling: Filling, verbalizer: None, head: Head
) -> dict[str, float]:
    scores: list[Tensor] = []
    labels: list[int] = []
    missed: list[int] = []
    for batch in batches:
        scores += head_log_probabilities(forward, batch, [head] * len(batch), [filling])
        labels += [label for e in batch for label in e.target]
        missed += [label for e in batch for label in e.missed]
    return _likeliest(torch.cat(scores), torch.tensor(labels), torch.tensor(missed, dtype=torch.int64))


def _likeliest(table: Tensor, truth: Tensor, missed: Tensor | None = None) -> dict[str, float]:
    missed = None if missed is None else missed.to(table.device)
    return of_labels(table.argmax(dim=-1), table, truth.to(table.device), missed)


def of_labels(guess: Tensor, table: Tensor, truth: Tensor, missed: Tensor | None = None) -> dict[str, float]:
    """Metrics of labels `[N]` that were chosen, and of log-probabilities `[N, C]`, against the true ones `[N]`.

    Args:
        missed: `[M]`, the true labels of what was given none.
    """
    said, is_ = (F.one_hot(labels, table.shape[1]).bool() for labels in (guess, truth))
    if missed is not None:
        said = F.pad(said, (0, 0, 0, len(missed)))
        is_ = torch.cat([is_, F.one_hot(missed, table.shape[1]).bool()])
    return {
        "accuracy": int((guess == truth).sum()) / len(is_),
        "macro_f1": _macro_f1(said, is_),
        "loss": float(F.nll_loss(table, truth)),
    }


def _multi_label(
    forward: Forward, batches: Batches, filling: Filling, verbalizer: Verbalizer, head: None
) -> dict[str, float]:
    odds: list[Tensor] = []
    truth: list[list[bool]] = []
    for batch in batches:
        odds += label_odds(forward, batch, [verbalizer] * len(batch), [filling])
        truth += [[label in e.labels for label in range(len(verbalizer.labels))] for e in batch]
    table = torch.stack(odds)
    return of_several(table > 0, table, torch.tensor(truth, device=table.device))


def of_several(said: Tensor, table: Tensor, is_: Tensor) -> dict[str, float]:
    """Metrics of the labels that were said to apply, and of log-odds, against those that do; all `[N, C]`."""
    return {
        "accuracy": float((said == is_).all(dim=-1).double().mean()),
        "micro_f1": _f1(said.flatten(), is_.flatten()),
        "macro_f1": _macro_f1(said, is_),
        "loss": float(odds_loss(table, is_)),
    }


def _macro_f1(said: Tensor, is_: Tensor) -> float:
    """Mean F1 over the labels that occur among answers or guesses; both `[N, C]` bool."""
    scores = [_f1(said[:, c], is_[:, c]) for c in range(said.shape[1]) if bool((said[:, c] | is_[:, c]).any())]
    return sum(scores) / len(scores) if scores else 1.0


def _f1(said: Tensor, is_: Tensor) -> float:
    total = int(said.sum()) + int(is_.sum())
    return 2 * int((said & is_).sum()) / total if total else 1.0


def _generation(forward: Forward, batches: Batches, filling: Filling, verbalizer: None, head: None) -> dict[str, float]:
    total, right, count = 0.0, 0, 0
    for batch in batches:
        logits, targets = forward(batch, [filling])
        tokens = int((targets != IGNORED).sum())
        total += float(answer_loss(logits, targets)) * tokens
        right += int((logits.argmax(dim=-1) == targets).sum())
        count += tokens
    loss = total / count
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "token_accuracy": right / count}


def _question_answering(
    forward: Forward, batches: Batches, filling: Filling, verbalizer: None, head: Head
) -> dict[str, float]:
    exact, overlaps, losses = [], [], []
    for batch in batches:
        for example, outputs in zip(batch, head_outputs(forward, batch, [head] * len(batch), [filling]), strict=True):
            first, last, _ = best_span(outputs)
            target = torch.tensor(example.target, device=outputs.device)
            whole = target.clamp_min(0)
            begins, ends = (whole & BEGINS).nonzero().flatten().tolist(), (whole & ENDS).nonzero().flatten().tolist()
            if not begins or not ends:  # the answer was cut away: it cannot be found
                exact.append(False)
                overlaps.append(0.0)
                continue
            exact.append((first, last) == (begins[0], ends[0]))
            common = max(0, min(last, ends[0]) - max(first, begins[0]) + 1)
            overlaps.append(2 * common / (last - first + 1 + ends[0] - begins[0] + 1))
            losses.append(float(span_loss(outputs[None], target[None])))
    return {
        "accuracy": sum(exact) / len(exact),
        "f1": sum(overlaps) / len(overlaps),
        "loss": sum(losses) / len(losses) if losses else float("nan"),
    }


def _feature_extraction(
    forward: Forward, batches: Batches, filling: Filling, verbalizer: None, head: None
) -> dict[str, float]:
    found: list[Tensor] = []
    groups: list[int | None] = []
    for batch in batches:
        found.append(row_vectors(forward, batch, [filling]))
        groups += [e.label for e in batch]
    vectors, kinds = torch.cat(found), torch.tensor(groups)
    unit = F.normalize(vectors, dim=-1)
    nearest = (unit @ unit.T).fill_diagonal_(float("-inf")).argmax(dim=-1).cpu()
    # A row that is alone has no other.
    right = (kinds[nearest] == kinds) & (nearest != torch.arange(len(kinds)))
    return {
        "accuracy": float(right.double().mean()),
        "loss": float(likeness_loss(vectors, kinds.to(vectors.device))),
    }


OF_KIND: Mapping[Kind, Measure] = {
    "generation": _generation,
    "classification": _classification,
    "multi-label": _multi_label,
    "sequence-classification": _classification,
    "token-classification": _token_classification,
    "question-answering": _question_answering,
    "feature-extraction": _feature_extraction,
}
