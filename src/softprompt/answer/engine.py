"""One backbone, many prompts, mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from softprompt.answer.answers import (
    Answer,
    Classification,
    Embedding,
    Generation,
    Labelling,
    Request,
    Span,
    Tagging,
)
from softprompt.answer.options import generation_config, refused_options
from softprompt.answer.requests import (
    CLASSIFYING,
    VERBS,
    AskedRow,
    Ensemble,
    Entry,
    asking,
    check_request,
    chosen_by,
    no_writers,
    to_answer,
    to_write,
)
from softprompt.answer.verdicts import classification, labelling, span, tagging
from softprompt.arguments import check_arguments
from softprompt.backbone.backbone import Backbone
from softprompt.checks import check_whole
from softprompt.collection import SavedPrompts, load_any
from softprompt.errors import SettingsError, SoftpromptError, UnknownPromptError
from softprompt.prompts.head import Head
from softprompt.run.forward import Filling, Forward
from softprompt.run.generation import PromptedModel
from softprompt.run.maker import example_maker
from softprompt.run.score import (
    head_log_probabilities,
    head_outputs,
    label_log_probabilities,
    label_odds,
    row_vectors,
)
from softprompt.run.vote import By
from softprompt.saved import SavedPrompt
from softprompt.text.examples import Example
from softprompt.text.task import Task
from softprompt.text.template import Target

A = TypeVar("A")


class Engine:
    """Answers with any number of prompts over one backbone; one batch may mix them.

    What stands in front of every row of a prompt (its hard text, its virtual tokens) is compiled to keys and values at
    the first row and kept until the prompt is removed. A text about which several prompts are asked is read once.

    Attributes:
        backbone: the frozen model.
        batch_size: rows that are run at once.
    """

    def __init__(self, backbone: Backbone, *, batch_size: int = 32) -> None:
        """
        Raises:
            SettingsError: a batch size below 1, or no backbone.
        """
        check_arguments(backbone=backbone)
        check_whole("batch_size", batch_size)
        self.backbone, self.batch_size = backbone, batch_size
        self._forward = Forward(backbone)
        self._entries: dict[str, Entry | Ensemble] = {}

    @property
    def prompts(self) -> Mapping[str, SavedPrompt | SavedPrompts]:
        """The prompts, and ensembles of them, by name."""
        return {name: entry.prompt for name, entry in self._entries.items()}

    def add(self, name: str, prompt: str | Path | SavedPrompt | SavedPrompts, *, replace: bool = False) -> None:
        """Take a prompt in, or an ensemble that answers as one.

        Args:
            name: what requests call it.
            prompt: the folder of a saved prompt or of an ensemble; or such a prompt, such an ensemble, which
                `softprompt.ensemble` makes of prompts that were trained alone.
            replace: whether a prompt of that name is replaced.

        Raises:
            SettingsError: the name is taken, or empty; or the folder holds prompts that each have a task of their own.
            ArtifactError: the folder cannot be read.
            MismatchError: it belongs to another backbone.
        """
        if not name or (name in self._entries and not replace):
            raise SettingsError(
                f"there is a prompt called {name!r} already" if name else "a prompt needs a name",
                where="name",
                instead="Give another name, or replace=True." if name else "Give one.",
            )
        check_arguments(folder=prompt)
        if isinstance(prompt, (SavedPrompt, SavedPrompts)):
            prompt.check(self.backbone, name)
            saved = prompt
        else:
            saved = load_any(prompt, self.backbone)
        entry: Entry | Ensemble
        if isinstance(saved, SavedPrompts):
            saved.check_ensemble(name if saved is prompt else str(prompt))
            entry = Ensemble(saved, tuple(self._taken_in(member) for member in saved.members.values()))
        else:
            entry = self._taken_in(saved)
        saved.note_quantization(self.backbone, name)
        if name in self._entries:
            self.remove(name)
        self._entries[name] = entry

    def _taken_in(self, saved: SavedPrompt) -> Entry:
        maker, writer = example_maker(self.backbone, saved.task, inside=saved.inside), None
        if isinstance(saved.task.template.target, Target):
            # Whoever has a label generated, not chosen, needs room for as much as is generated.
            spoken = Task(saved.task.template, max_length=saved.task.max_length)
            writer = example_maker(self.backbone, spoken, inside=saved.inside)
        return Entry(saved, maker, writer, Filling(saved.values, {}))

    def remove(self, name: str) -> None:
        """Forget a prompt.

        Raises:
            UnknownPromptError: there is none of that name.
        """
        self._entry(name)
        del self._entries[name]
        # Hard text in front of its rows, too; the others read theirs again when they next need it.
        self._forward.reader.forget()

    @torch.no_grad()
    def classify(self, requests: Sequence[Request], *, by: By | None = None) -> list[Classification | Labelling]:
        """Choose a label for each request, in order; where its task is multi-label, all that apply.

        Args:
            requests: prompts and rows. One to an ensemble is answered by all of its prompts, in the same batches.
            by: how an ensemble chooses: "vote" (unless said otherwise) takes the label that most of its prompts choose,
                of equally many the one with the highest mean probability; "mean" the one with the highest mean
                probability. For ensembles only.

        Raises:
            UnknownPromptError: a request names a prompt that is not there.
            RequestError: a prompt chooses no label, or a row does not fit its template; the message says which request.
            SettingsError: there is no such way to choose, or no ensemble is asked.
        """
        asked = self._read(requests, asking(*CLASSIFYING))
        return self._classify(asked, chosen_by(by, asked))

    @torch.no_grad()
    def tag(self, requests: Sequence[Request]) -> list[Tagging]:
        """Choose a label for each word of each request's field, in order.

        Raises:
            UnknownPromptError: a request names a prompt that is not there.
            RequestError: a prompt is of another kind, or a row does not fit its template; the message says which.
        """
        return self._tag(self._read_alone(requests, asking("token-classification")))

    @torch.no_grad()
    def extract(self, requests: Sequence[Request]) -> list[Span]:
        """Find the part of each request's field that answers it, in order. Raises as `tag`."""
        return self._extract(self._read_alone(requests, asking("question-answering")))

    @torch.no_grad()
    def embed(self, requests: Sequence[Request]) -> list[Embedding]:
        """A vector for each request, in order. Raises as `tag`."""
        return self._embed(self._read_alone(requests, asking("feature-extraction")))

    @torch.no_grad()
    def answer(self, requests: Sequence[Request], *, by: By | None = None, max_new_tokens: int = 32) -> list[Answer]:
        """Answer each request, in order, as the task of its prompt is answered: by label, text, span or vector.

        Args:
            requests: prompts and rows.
            by: as in `classify`.
            max_new_tokens: as in `generate`, of prompts that write.

        Raises as the method that answers its kind of task.
        """
        check_whole("max_new_tokens", max_new_tokens)
        ways: Mapping[str, Callable[[Sequence[AskedRow]], Sequence[Answer]]] = {
            "tag": self._tag,
            "extract": self._extract,
            "embed": self._embed,
            "generate": partial(self._generate, config=generation_config(self.backbone, max_new_tokens, {})),
        }
        asked = self._read(requests, partial(to_answer, room_for=max_new_tokens))
        by = chosen_by(by, asked)
        verbs = [VERBS[first.entry.prompt.task.kind] for first, *_ in asked]
        answers: dict[int, Answer] = {}
        for verb in dict.fromkeys(verbs):
            own = [i for i, other in enumerate(verbs) if other == verb]
            if verb == "classify":
                answers.update(zip(own, self._classify([asked[i] for i in own], by), strict=True))
            else:
                answers.update(zip(own, ways[verb]([asked[i][0] for i in own]), strict=True))
        return [answers[i] for i in range(len(requests))]

    def _classify(self, asked: Sequence[tuple[AskedRow, ...]], by: By) -> list[Classification | Labelling]:
        each = [a for own in asked for a in own]
        in_order = iter(self._in_batches(each, lambda e, x: _CLASSIFY[e[0].prompt.task.kind](self, e, x)))
        found: list[Classification | Labelling] = []
        for members in asked:
            table, task = torch.stack([next(in_order) for _ in members]), members[0].entry.prompt.task
            together = labelling if task.kind == "multi-label" else classification
            answer: Classification | Labelling = together(table, task.labels, by)
            found.append(replace(answer, cut=max(a.example.cut for a in members)))
        return found

    def _tag(self, asked: Sequence[AskedRow]) -> list[Tagging]:
        return [tagging(a, o) for a, o in zip(asked, self._in_batches(asked, self._head_outputs), strict=True)]

    def _extract(self, asked: Sequence[AskedRow]) -> list[Span]:
        return [span(a, o) for a, o in zip(asked, self._in_batches(asked, self._head_outputs), strict=True)]

    def _embed(self, asked: Sequence[AskedRow]) -> list[Embedding]:
        vectors = self._in_batches(asked, lambda e, x: row_vectors(self._forward, x, *self._fillings(e)).tolist())
        return [Embedding(tuple(vector), a.example.cut) for vector, a in zip(vectors, asked, strict=True)]

    def _head_outputs(self, entries: Sequence[Entry], examples: Sequence[Example]) -> list[Tensor]:
        """What each row's head makes of its states, one `[S, C]` per row."""
        return head_outputs(self._forward, examples, _heads(entries), *self._fillings(entries))

    def _by_word(self, entries: Sequence[Entry], examples: Sequence[Example]) -> list[Tensor]:
        fillings, which = self._fillings(entries)
        verbalizers = [v for e in entries if (v := e.maker.verbalizer) is not None]
        return label_log_probabilities(self._forward, examples, verbalizers, fillings, which)

    def _by_label_head(self, entries: Sequence[Entry], examples: Sequence[Example]) -> list[Tensor]:
        rows = head_log_probabilities(self._forward, examples, _heads(entries), *self._fillings(entries))
        return [row[-1] for row in rows]

    def _by_odds(self, entries: Sequence[Entry], examples: Sequence[Example]) -> list[Tensor]:
        fillings, which = self._fillings(entries)
        verbalizers = [v for e in entries if (v := e.maker.verbalizer) is not None]
        return label_odds(self._forward, examples, verbalizers, fillings, which)

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int = 32, seed: int | None = None, **options: Any
    ) -> list[Generation]:
        """Write an answer to each request, in order; greedily unless options say otherwise.

        Args:
            requests: prompts and rows.
            max_new_tokens: the most tokens an answer may have; as much room is left behind every row.
            seed: of sampling (`do_sample=True`); with one, the same batch gives the same answers.
            options: of transformers' `GenerationConfig`: `num_beams`, `do_sample` with `temperature`, `top_p` and the
                like, `repetition_penalty`, ...; an error names them all. The model's own defaults are not taken over.

        Raises:
            UnknownPromptError: a request names a prompt that is not there.
            RequestError: a row does not fit its template, or an ensemble is asked, whose prompts would each write
                another text; the message says which request.
            SettingsError: `max_new_tokens` below 1, or an option or value that transformers does not take.
        """
        check_whole("max_new_tokens", max_new_tokens)
        config = generation_config(self.backbone, max_new_tokens, options)
        asked = self._read_alone(requests, partial(to_write, room_for=max_new_tokens))
        devices = [self.backbone.device] if self.backbone.device.type == "cuda" else []
        # The caller's own random numbers go on as if nothing had been drawn.
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            try:
                return self._generate(asked, config)
            except (ValueError, TypeError, ArithmeticError) as cause:
                # Some values are only looked at when they are used.
                if not options:
                    raise
                raise refused_options(cause) from cause

    def _generate(self, asked: Sequence[AskedRow], config: GenerationConfig) -> list[Generation]:
        return self._in_batches(asked, partial(self._write, config=config))

    def _write(
        self, entries: Sequence[Entry], examples: Sequence[Example], config: GenerationConfig
    ) -> list[Generation]:
        fillings, which = self._fillings(entries)
        ready = self._forward.prepare(examples, fillings, which)
        model = PromptedModel(self.backbone, ready.context)
        # What is not said is not done: a model's own defaults (a repetition penalty, say) are not taken over.
        model.generation_config = GenerationConfig()
        sequences = model.write(ready.inputs_embeds, ready.mask, ready.rows, generation_config=config)
        ends = set(config.eos_token_id)
        answers = []
        for entry, example, ids in zip(entries, examples, sequences.tolist(), strict=True):
            end = next((i for i, token in enumerate(ids) if token in ends), None)
            kept = ids if end is None else ids[:end]
            answers.append(
                Generation(entry.maker.decode(kept), len(kept) + (end is not None), end is not None, example.cut)
            )
        return answers

    def _entry(self, name: str) -> Entry | Ensemble:
        if name not in self._entries:
            known = ", ".join(self._entries) or "none"
            raise UnknownPromptError(f"there is no prompt called {name!r}", instead=f"There are: {known}.")
        return self._entries[name]

    def _read(
        self,
        requests: Sequence[Request],
        example: Callable[[Entry, Mapping[str, Any], str], Example],
        *,
        alone: bool = False,
    ) -> list[tuple[AskedRow, ...]]:
        """All requests are read before the first is answered.

        Args:
            alone: whether only single prompts may be asked; ensembles may where they choose labels.

        Returns:
            For each request what is asked: of one prompt, or of each of an ensemble.
        """
        found = []
        for number, request in enumerate(requests, 1):
            check_request(request, number)
            name, row = request
            where = f"request {number} ({name})"
            try:
                entry = self._entry(name)
                members = (entry,) if isinstance(entry, Entry) else entry.members
                if isinstance(entry, Ensemble) and (alone or members[0].prompt.task.kind not in CLASSIFYING):
                    raise no_writers(entry.prompt)
                named = getattr(row, "where", None) or where
                found.append(tuple(AskedRow(row, member, example(member, row, named)) for member in members))
            except SoftpromptError as error:
                error.where = error.where or where
                raise
        return found

    def _read_alone(
        self, requests: Sequence[Request], example: Callable[[Entry, Mapping[str, Any], str], Example]
    ) -> list[AskedRow]:
        return [asked for (asked,) in self._read(requests, example, alone=True)]

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

    @staticmethod
    def _fillings(entries: Sequence[Entry]) -> tuple[list[Filling], list[int]]:
        distinct = {id(entry): entry for entry in entries}
        index = {key: i for i, key in enumerate(distinct)}
        return [entry.filling for entry in distinct.values()], [index[id(entry)] for entry in entries]


def _heads(entries: Sequence[Entry]) -> list[Head]:
    return [head for e in entries if (head := e.prompt.head) is not None]


# For each row the log-probabilities of its labels or, where several may apply, the log-odds of each.
_CLASSIFY: Mapping[str, Callable[[Engine, Sequence[Entry], Sequence[Example]], list[Tensor]]] = {
    "classification": Engine._by_word,
    "sequence-classification": Engine._by_label_head,
    "multi-label": Engine._by_odds,
}
