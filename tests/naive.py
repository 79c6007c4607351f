"""What a prompt answers to a row, by the plain model and one row at a time; what the engine's answers are held against.

Of the package only the tokens of a row are used; see `reference` for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

import reference
from softprompt.answer.answers import Answer, Classification, Embedding, Labelling, Span, Tagging
from softprompt.prompts.prompt import Prefix
from softprompt.run.maker import example_maker
from softprompt.saved import SavedPrompt


@torch.no_grad()
def answer(family: str, asked: SavedPrompt, row: Mapping[str, Any]) -> Answer | None:
    """The answer; None where it is text, which `reference.generate` is for."""
    model, backbone, task = reference.plain(family), reference.backbone(family), asked.task
    maker = example_maker(backbone, task)
    example = maker(row, answered=False)
    if task.kind == "generation":
        return None
    within = reference.prefixed(model, asked.values) if isinstance(asked.values, Prefix) else nullcontext()
    with within:
        states, logits = reference.answer(model, backbone, example, asked.values.at_input)
    if task.kind == "feature-extraction":
        return Embedding(tuple(states.mean(dim=0).tolist()))
    if asked.head is not None:
        outputs = states @ asked.head.weight.T + asked.head.bias
        if task.kind == "question-answering":
            return _span(outputs, example.spans, row[task.field])
        if task.kind == "sequence-classification":
            return _label(outputs[-1].softmax(dim=-1), task.labels)
        likely, chosen = outputs.softmax(dim=-1).max(dim=-1)
        return Tagging(tuple(task.labels[i] for i in chosen.tolist()), tuple(likely.tolist()))
    assert logits is not None
    words = logits[-1, [word[0] for word in maker.verbalizer.words]]
    if task.kind == "classification":
        assert maker.verbalizer.by_first_token, "a label is told by its first token"
        return _label(words.softmax(dim=-1), task.labels)
    none = logits[-1, maker.verbalizer.none[0]]
    applies = dict(zip(task.labels, (words.exp() / (words.exp() + none.exp())).tolist(), strict=True))
    return Labelling(tuple(label for label, likely in applies.items() if likely > 0.5), applies)


def _label(probabilities: Tensor, labels: tuple[str, ...]) -> Classification:
    named = dict(zip(labels, probabilities.tolist(), strict=True))
    return Classification(max(named, key=named.__getitem__), named)


def _span(outputs: Tensor, spans: tuple[tuple[int, int], ...], text: str) -> Span:
    begins, ends = outputs.softmax(dim=0).double().unbind(dim=1)
    table = {(a, b): float(begins[a] * ends[b]) for b in range(len(outputs)) for a in range(b + 1)}
    first, last = max(table, key=table.__getitem__)
    found = text[spans[first][0] : spans[last][1]]
    start = spans[first][0] + len(found) - len(found.lstrip())
    likely = table[first, last] / sum(table.values())
    return Span(found.strip(), start, start + len(found.strip()), likely)
