"""From numbers to answers: what probabilities and scores say about a row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from softprompt.answer.answers import Classification, Labelling, Span, Tagging
from softprompt.answer.requests import AskedRow
from softprompt.run.score import best_span
from softprompt.run.vote import By, applying, choice, mean_log_probabilities
from softprompt.text.fields import several, text


def classification(each: Tensor, labels: Sequence[str], by: By) -> Classification:
    """What the log-probabilities `[N, C]` that N prompts give the labels say together."""
    probabilities = mean_log_probabilities(each) if len(each) > 1 else each[0]
    named = dict(zip(labels, probabilities.exp().tolist(), strict=True))
    return Classification(labels[int(choice(each, by))], named)


def labelling(each: Tensor, labels: Sequence[str], by: By) -> Labelling:
    """What the log-odds `[N, C]` that N prompts give the labels say together."""
    probabilities = each.sigmoid().mean(dim=0)
    chosen = tuple(label for label, applies in zip(labels, applying(each, by).tolist(), strict=True) if applies)
    return Labelling(chosen, dict(zip(labels, probabilities.tolist(), strict=True)))


def tagging(asked: AskedRow, outputs: Tensor) -> Tagging:
    """What a head's outputs `[S, C]` say about the words of a row's field."""
    task = asked.entry.prompt.task
    likely, chosen = outputs.softmax(dim=-1).max(dim=-1)
    answered = dict(zip(asked.example.words, zip(chosen.tolist(), likely.tolist(), strict=True), strict=True))
    words = range(len(several(asked.row, task.field or "", None)))
    labels = tuple(task.labels[answered[i][0]] if i in answered else None for i in words)
    probabilities = tuple(answered[i][1] if i in answered else None for i in words)
    return Tagging(labels, probabilities, asked.example.cut)


def span(asked: AskedRow, outputs: Tensor) -> Span:
    """What a head's outputs `[S, 2]` say about where in a row's field the answer stands."""
    first, last, likely = best_span(outputs)
    start, end = asked.example.spans[first][0], asked.example.spans[last][1]
    answer = text(asked.row, asked.entry.prompt.task.field or "", None)[start:end]
    # Many a token begins with the blank before its word.
    start += len(answer) - len(answer.lstrip())
    answer = answer.strip()
    return Span(answer, start, start + len(answer), likely, asked.example.cut)
