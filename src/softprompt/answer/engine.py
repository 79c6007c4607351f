"""One backbone, many prompts, mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from softprompt.artifact import SavedPrompt
from softprompt.backbone.backbone import Backbone
from softprompt.collection import SavedPrompts, load_any
from softprompt.errors import RequestError, SettingsError, SoftpromptError, UnknownPromptError
from softprompt.run.forward import Filling, Forward
from softprompt.run.generation import PromptedModel
from softprompt.run.score import label_log_probabilities
from softprompt.run.vote import By, check_by, choice, mean_log_probabilities
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.task import Task

_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "typical_p"}
_OPTIONS = {
    "bad_words_ids",
    "cache_implementation",
    "do_sample",
    "early_stopping",
    "length_penalty",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "repetition_penalty",
    "suppress_tokens",
    "use_cache",
}
_CACHES = (None, "static", "dynamic")

Request = tuple[str, Mapping[str, Any]]
"""The name of a prompt and the row it is to answer."""


@dataclass(frozen=True)
class Classification:
    """The answer to a classification.

    Attributes:
        label: the most probable label, or what an ensemble voted for.
        probabilities: of each label among the task's labels; they add up to one. Of an ensemble, the means.
        cut: how many tokens of the row's fields were cut away, because it was too long.
    """

    label: str
    probabilities: Mapping[str, float]
    cut: int = 0


@dataclass(frozen=True)
class Generation:
    """A generated answer.

    Attributes:
        text: what was written, without end-of-text token.
        tokens: how many tokens that took, the end-of-text token included.
        finished: whether the model ended it; False where `max_new_tokens` did.
        cut: how many tokens of the row's fields were cut away, because it was too long.
    """

    text: str
    tokens: int
    finished: bool
    cut: int = 0


@dataclass(frozen=True)
class _Entry:
    prompt: SavedPrompt
    maker: ExampleMaker
    writer: ExampleMaker
    filling: Filling


@dataclass(frozen=True)
class _Ensemble:
    prompt: SavedPrompts
    members: tuple[_Entry, ...]


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
            SettingsError: a batch size below 1.
        """
        _check_positive("batch_size", batch_size)
        self.backbone, self.batch_size = backbone, batch_size
        self._forward = Forward(backbone)
        self._entries: dict[str, _Entry | _Ensemble] = {}

    @property
    def prompts(self) -> Mapping[str, SavedPrompt | SavedPrompts]:
        """The prompts, and ensembles of them, by name."""
        return {name: entry.prompt for name, entry in self._entries.items()}

    def add(self, name: str, prompt: str | Path | SavedPrompt | SavedPrompts, *, replace: bool = False) -> None:
        """Take a prompt in, or an ensemble that answers as one.

        Args:
            name: what requests call it.
            prompt: the folder of a saved prompt or of an ensemble; or such a prompt, such an ensemble.
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
        if isinstance(prompt, (SavedPrompt, SavedPrompts)):
            prompt.check(self.backbone, name)
            saved = prompt
        else:
            saved = load_any(prompt, self.backbone)
        entry: _Entry | _Ensemble
        if isinstance(saved, SavedPrompts):
            saved.check_ensemble(name if saved is prompt else str(prompt))
            entry = _Ensemble(saved, tuple(self._taken_in(member) for member in saved.members.values()))
        else:
            entry = self._taken_in(saved)
        if name in self._entries:
            self.remove(name)
        self._entries[name] = entry

    def _taken_in(self, saved: SavedPrompt) -> _Entry:
        maker, writer = (
            ExampleMaker(task, self.backbone.tokenizer, self.backbone.positions)
            # Whoever has a label generated, not chosen, needs room for as much as is generated.
            for task in (saved.task, Task(saved.task.template, max_length=saved.task.max_length))
        )
        return _Entry(saved, maker, writer, Filling(saved.values, {}))

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
    def classify(self, requests: Sequence[Request], *, by: By = "vote") -> list[Classification]:
        """Choose a label for each request, in order.

        Args:
            requests: prompts and rows. One to an ensemble is answered by all of its prompts, in the same batches.
            by: how an ensemble chooses: "vote" takes the label that most of its prompts choose, of equally many the one
                with the highest mean probability; "mean" the one with the highest mean probability.

        Raises:
            UnknownPromptError: a request names a prompt that is not there.
            RequestError: a prompt has no labels, or a row does not fit its template; the message says which request.
            SettingsError: there is no such way to choose.
        """
        check_by(by)
        entries, examples, owners = self._read(requests, self._labelled_example)
        answers: dict[int, Tensor] = {}
        for rows in self._batches(examples):
            fillings, which = self._fillings([entries[i] for i in rows])
            verbalizers = [entries[i].maker.verbalizer for i in rows]
            scores = label_log_probabilities(
                self._forward, [examples[i] for i in rows], [v for v in verbalizers if v is not None], fillings, which
            )
            answers.update(zip(rows, scores, strict=True))
        found = []
        for own in owners:
            each, labels = torch.stack([answers[i] for i in own]), entries[own[0]].prompt.task.labels
            probabilities = mean_log_probabilities(each) if len(own) > 1 else each[0]
            found.append(
                Classification(
                    labels[int(choice(each, by))],
                    dict(zip(labels, probabilities.exp().tolist(), strict=True)),
                    max(examples[i].cut for i in own),
                )
            )
        return found

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
        _check_positive("max_new_tokens", max_new_tokens)
        config = self._generation_config(max_new_tokens, options)
        entries, examples, _ = self._read(
            requests,
            lambda entry, row, where: entry.writer(row, answered=False, where=where, room_for=max_new_tokens),
            alone=True,
        )
        answers: dict[int, Generation] = {}
        devices = [self.backbone.device] if self.backbone.device.type == "cuda" else []
        # The caller's own random numbers go on as if nothing had been drawn.
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for rows in self._batches(examples):
                try:
                    written = self._write([entries[i] for i in rows], [examples[i] for i in rows], config)
                except (ValueError, TypeError, ArithmeticError) as cause:
                    # Some values are only looked at when they are used.
                    if not options:
                        raise
                    raise _refused_options(cause) from cause
                answers.update(zip(rows, written, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _write(
        self, entries: Sequence[_Entry], examples: Sequence[Example], config: GenerationConfig
    ) -> list[Generation]:
        fillings, which = self._fillings(entries)
        ready = self._forward.prepare(examples, fillings, which)
        model = PromptedModel(self.backbone, ready.context)
        # What is not said is not done: a model's own defaults (a repetition penalty, say) are not taken over.
        model.generation_config = GenerationConfig()
        sequences = model.generate(
            inputs_embeds=ready.inputs_embeds,
            attention_mask=ready.mask.long(),
            prompt_ids=ready.rows,
            generation_config=config,
        )
        ends = set(config.eos_token_id)
        answers = []
        for entry, example, ids in zip(entries, examples, sequences.tolist(), strict=True):
            end = next((i for i, token in enumerate(ids) if token in ends), None)
            kept = ids if end is None else ids[:end]
            text = entry.maker.decode(kept)
            answers.append(Generation(text, len(kept) + (end is not None), end is not None, example.cut))
        return answers

    def _generation_config(self, max_new_tokens: int, options: Mapping[str, Any]) -> GenerationConfig:
        model, tokenizer = self.backbone.model, self.backbone.tokenizer
        given = model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])} - {None}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
        unknown = set(options) - _OPTIONS - _SAMPLING
        if unknown:
            raise SettingsError(
                f"generation takes no option {', '.join(sorted(unknown))}",
                instead=f"It takes {', '.join(sorted(_OPTIONS | _SAMPLING))}.",
            )
        idle = sorted(set(options) & _SAMPLING)
        if idle and not options.get("do_sample"):
            raise SettingsError(
                f"{', '.join(idle)} would do nothing without sampling",
                where="generate",
                instead="Add do_sample=True, or leave it out.",
            )
        if options.get("cache_implementation") not in _CACHES:
            raise SettingsError(
                f"cache_implementation {options['cache_implementation']!r} is not supported",
                where="cache_implementation",
                instead="Use 'static' or 'dynamic', or leave it out.",
            )
        try:
            return GenerationConfig(
                **{"do_sample": False, **options},
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(ends),
                pad_token_id=pad,
            )
        except (ValueError, TypeError) as cause:
            raise _refused_options(cause) from cause

    def _entry(self, name: str) -> _Entry | _Ensemble:
        if name not in self._entries:
            known = ", ".join(self._entries) or "none"
            raise UnknownPromptError(f"there is no prompt called {name!r}", instead=f"There are: {known}.")
        return self._entries[name]

    def _read(
        self,
        requests: Sequence[Request],
        example: Callable[[_Entry, Mapping[str, Any], str], Example],
        *,
        alone: bool = False,
    ) -> tuple[list[_Entry], list[Example], list[range]]:
        """All requests are read before the first is answered.

        Args:
            alone: whether only single prompts may be asked.

        Returns:
            Prompts and examples to answer, and which of them are of each request: one, or one for each prompt of an
            ensemble.
        """
        entries: list[_Entry] = []
        examples: list[Example] = []
        owners = []
        for number, request in enumerate(requests, 1):
            if not isinstance(request, tuple) or len(request) != 2:
                raise RequestError(
                    f"it is {type(request).__name__} {str(request)[:40]!r}, not a prompt's name and a row",
                    where=f"request {number}",
                    instead='Give a list of pairs: [("topic", {"text": "..."})].',
                )
            name, row = request
            where = f"request {number} ({name})"
            try:
                entry = self._entry(name)
                members = (entry,) if isinstance(entry, _Entry) else entry.members
                if alone and isinstance(entry, _Ensemble):
                    raise _no_writers(name, entry.prompt)
                examples += [example(member, row, getattr(row, "where", None) or where) for member in members]
            except SoftpromptError as error:
                error.where = error.where or where
                raise
            owners.append(range(len(entries), len(entries) + len(members)))
            entries += members
        return entries, examples, owners

    @staticmethod
    def _labelled_example(entry: _Entry, row: Mapping[str, Any], where: str) -> Example:
        if entry.maker.verbalizer is None:
            raise RequestError("its task has no labels to choose from", where=where, instead="Use generate.")
        return entry.maker(row, answered=False, where=where)

    def _batches(self, examples: Sequence[Example]) -> Iterator[list[int]]:
        """Indices of rows of like length, `batch_size` at a time."""
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].tokens))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]

    @staticmethod
    def _fillings(entries: Sequence[_Entry]) -> tuple[list[Filling], list[int]]:
        distinct = {id(entry): entry for entry in entries}
        index = {key: i for i, key in enumerate(distinct)}
        return [entry.filling for entry in distinct.values()], [index[id(entry)] for entry in entries]


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise SettingsError(f"{name} is {value}", where=name, instead="Give a number of 1 or more.")


def _no_writers(name: str, prompt: SavedPrompts) -> RequestError:
    return RequestError(
        f"{name!r} is an ensemble of {len(prompt.members)} prompts: they vote on a label, but write no text together",
        instead=f"Add one of its prompts by itself, the folder {next(iter(prompt.members))} in its own, and ask that.",
    )


def _refused_options(cause: Exception) -> SettingsError:
    return SettingsError(f"these generation options do not go together: {cause}", where="options")
