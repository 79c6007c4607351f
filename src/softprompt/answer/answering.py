"""Rows that were read become answers, batch by batch, as the task of each row's prompt is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from softprompt.answer.answers import Answer, Classification, Embedding, Generation, Labelling, Span, Tagging
from softprompt.answer.requests import VERBS, AskedRow, Entry
from softprompt.answer.verdicts import classification, labelling, span, tagging
from softprompt.prompts.head import Head
from softprompt.run.forward import Filling, Forward
from softprompt.run.generation import PromptedModel
from softprompt.run.score import (
    head_log_probabilities,
    head_outputs,
    label_log_probabilities,
    label_odds,
    row_vectors,
)
from softprompt.run.vote import By
from softprompt.text.examples import Example

A = TypeVar("A")
Asked = tuple[AskedRow, ...]
"""What one request asks: a row of one prompt, or of each of an ensemble."""


class Answering:
    """Answers rows of any mixture of prompts.

    Attributes:
        batch_size: rows that are run at once.
    """

    def __init__(self, forward: Forward, batch_size: int) -> None:
        self._forward, self.batch_size = forward, batch_size

    def answer(self, asked: Sequence[Asked], by: By, config: GenerationConfig) -> list[Answer]:
        """Each as its prompt's task is answered.

        Args:
            asked: for each request what it asks.
            by: how ensembles choose.
            config: of prompts that write.
        """
        ways: Mapping[str, Callable[[Sequence[AskedRow]], Sequence[Answer]]] = {
            "tag": self.tag,
            "extract": self.extract,
            "embed": self.embed,
            "generate": partial(self.generate, config=config),
        }
        verbs = [VERBS[first.entry.prompt.task.kind] for first, *_ in asked]
        answers: dict[int, Answer] = {}
        for verb in dict.fromkeys(verbs):
            own = [i for i, other in enumerate(verbs) if other == verb]
            if verb == "classify":
                answers.update(zip(own, self.classify([asked[i] for i in own], by), strict=True))
            else:
                answers.update(zip(own, ways[verb]([asked[i][0] for i in own]), strict=True))
        return [answers[i] for i in range(len(asked))]

    def classify(self, asked: Sequence[Asked], by: By) -> list[Classification | Labelling]:
        each = [a for own in asked for a in own]
        in_order = iter(self._in_batches(each, lambda e, x: _CLASSIFY[e[0].prompt.task.kind](self, e, x)))
        found: list[Classification | Labelling] = []
        for members in asked:
            table, task = torch.stack([next(in_order) for _ in members]), members[0].entry.prompt.task
            together = labelling if task.kind == "multi-label" else classification
            answer: Classification | Labelling = together(table, task.labels, by)
            found.append(replace(answer, cut=max(a.example.cut for a in members)))
        return found

    def tag(self, asked: Sequence[AskedRow]) -> list[Tagging]:
        return [tagging(a, o) for a, o in zip(asked, self._in_batches(asked, self._head_outputs), strict=True)]

    def extract(self, asked: Sequence[AskedRow]) -> list[Span]:
        return [span(a, o) for a, o in zip(asked, self._in_batches(asked, self._head_outputs), strict=True)]

    def embed(self, asked: Sequence[AskedRow]) -> list[Embedding]:
        vectors = self._in_batches(asked, lambda e, x: row_vectors(self._forward, x, *fillings_of(e)).tolist())
        return [Embedding(tuple(vector), a.example.cut) for vector, a in zip(vectors, asked, strict=True)]

    def _head_outputs(self, entries: Sequence[Entry], examples: Sequence[Example]) -> list[Tensor]:
        """What each row's head makes of its states, one `[S, C]` per row."""
        return head_outputs(self._forward, examples, _heads(entries), *fillings_of(entries))

    def _by_word(self, entries: Sequence[Entry], examples: Sequence[Example]) -> list[Tensor]:
        fillings, which = fillings_of(entries)
        verbalizers = [v for e in entries if (v := e.maker.verbalizer) is not None]
        return label_log_probabilities(self._forward, examples, verbalizers, fillings, which)

    def _by_label_head(self, entries: Sequence[Entry], examples: Sequence[Example]) -> list[Tensor]:
        rows = head_log_probabilities(self._forward, examples, _heads(entries), *fillings_of(entries))
        return [row[-1] for row in rows]

    def _by_odds(self, entries: Sequence[Entry], examples: Sequence[Example]) -> list[Tensor]:
        fillings, which = fillings_of(entries)
        verbalizers = [v for e in entries if (v := e.maker.verbalizer) is not None]
        return label_odds(self._forward, examples, verbalizers, fillings, which)

    def generate(self, asked: Sequence[AskedRow], config: GenerationConfig) -> list[Generation]:
        return self._in_batches(asked, partial(self._write, config=config))

    def _write(
        self, entries: Sequence[Entry], examples: Sequence[Example], config: GenerationConfig
    ) -> list[Generation]:
        fillings, which = fillings_of(entries)
        ready = self._forward.prepare(examples, fillings, which)
        model = PromptedModel(self._forward.backbone, ready.context)
        # What is not said is not done: a model's own defaults (a repetition penalty, say) are not taken over.
        model.generation_config = GenerationConfig()
        sequences = model.write(ready.inputs_embeds, ready.mask, ready.rows, generation_config=config)
        ends = set(config.eos_token_id)
        answers = []
        for entry, example, ids in zip(entries, examples, sequences.tolist(), strict=True):
            end = next((i for i, token in enumerate(ids) if token in ends), None)
            kept = ids if end is None else ids[:end]
            answers.append(Generation(entry.decode(kept), len(kept) + (end is not None), end is not None, example.cut))
        return answers

    def _in_batches(
        self, asked: Sequence[AskedRow], answer: Callable[[Sequence[Entry], Sequence[Example]], Sequence[A]]
    ) -> list[A]:
        """What `answer` gives for each row, in order; it is called batch by batch."""
        found: dict[int, A] = {}
        for rows in self._batches(asked):
            answers = answer([asked[i].entry for i in rows], [asked[i].example for i in rows])
            found.update(zip(rows, answers, strict=True))
        return [found[i] for i in range(len(asked))]

    def _batches(self, asked: Sequence[AskedRow]) -> Iterator[list[int]]:
        """Indices of rows of one kind of task and of like length, `batch_size` at a time."""
        kinds = [a.entry.prompt.task.kind for a in asked]
        for kind in sorted(set(kinds)):
            own = [i for i in range(len(asked)) if kinds[i] == kind]
            order = sorted(own, key=lambda i: len(asked[i].example.tokens))
            for start in range(0, len(order), self.batch_size):
                yield order[start : start + self.batch_size]


def fillings_of(entries: Sequence[Entry]) -> tuple[list[Filling], list[int]]:
    """The prompts of some rows, each once, and for each row the index of its own."""
    distinct = {id(entry): entry for entry in entries}
    index = {key: i for i, key in enumerate(distinct)}
    return [entry.filling for entry in distinct.values()], [index[id(entry)] for entry in entries]


def _heads(entries: Sequence[Entry]) -> list[Head]:
    return [head for e in entries if (head := e.prompt.head) is not None]


# For each row the log-probabilities of its labels or, where several may apply, the log-odds of each.
_CLASSIFY: Mapping[str, Callable[[Answering, Sequence[Entry], Sequence[Example]], list[Tensor]]] = {
    "classification": Answering._by_word,
    "sequence-classification": Answering._by_label_head,
    "multi-label": Answering._by_odds,
}
