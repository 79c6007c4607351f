"""One backbone, many prompts, mixed batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from softprompt.answer.answering import Answering
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
from softprompt.answer.library import Library
from softprompt.answer.options import generation_config, refused_options
from softprompt.answer.requests import CLASSIFYING, asking, chosen_by, to_answer, to_write
from softprompt.arguments import check_arguments
from softprompt.backbone.backbone import Backbone
from softprompt.checks import check_whole
from softprompt.collection import SavedPrompts
from softprompt.run.forward import Forward
from softprompt.run.vote import By
from softprompt.saved import SavedPrompt

A = TypeVar("A")


class Engine:
    """Answers with any number of prompts over one backbone; one batch may mix them.

    What stands in front of every row of a prompt (its hard text, its virtual tokens) is compiled to keys and values at
    the first row and kept until the prompt is removed. A text about which several prompts are asked is read once.

    Attributes:
        backbone: the frozen model.
        batch_size: rows that are run at once.
    """

    def __init__(self, backbone: Backbone, *, batch_size: int = 32, memory: int | None = None) -> None:
        """
        Args:
            memory: bytes that prompts, and the keys and values they are compiled to, may take; None for no bound. What
                was not asked for longest is put away first; see `Library`.

        Raises:
            SettingsError: a batch size or memory below 1, or no backbone.
        """
        check_arguments(backbone=backbone)
        check_whole("batch_size", batch_size)
        self.backbone, self.batch_size = backbone, batch_size
        self._forward = Forward(backbone)
        self._library = Library(backbone, memory)
        self._answering = Answering(self._forward, batch_size)

    @property
    def prompts(self) -> Mapping[str, SavedPrompt | SavedPrompts]:
        """The prompts, and ensembles of them, that are in memory, by name."""
        return self._library.prompts

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
        self._library.add(name, prompt, replace=replace)

    def remove(self, name: str) -> None:
        """Forget a prompt.

        Raises:
            UnknownPromptError: there is none of that name.
        """
        self._library.remove(name)
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
        asked = self._library.read(requests, asking(*CLASSIFYING))
        return self._done(self._answering.classify(asked, chosen_by(by, asked)))

    @torch.no_grad()
    def tag(self, requests: Sequence[Request]) -> list[Tagging]:
        """Choose a label for each word of each request's field, in order.

        Raises:
            UnknownPromptError: a request names a prompt that is not there.
            RequestError: a prompt is of another kind, or a row does not fit its template; the message says which.
        """
        return self._done(self._answering.tag(self._library.read_alone(requests, asking("token-classification"))))

    @torch.no_grad()
    def extract(self, requests: Sequence[Request]) -> list[Span]:
        """Find the part of each request's field that answers it, in order. Raises as `tag`."""
        return self._done(self._answering.extract(self._library.read_alone(requests, asking("question-answering"))))

    @torch.no_grad()
    def embed(self, requests: Sequence[Request]) -> list[Embedding]:
        """A vector for each request, in order. Raises as `tag`."""
        return self._done(self._answering.embed(self._library.read_alone(requests, asking("feature-extraction"))))

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
        config = generation_config(self.backbone, max_new_tokens, {})
        asked = self._library.read(requests, partial(to_answer, room_for=max_new_tokens))
        return self._done(self._answering.answer(asked, chosen_by(by, asked), config))

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
        asked = self._library.read_alone(requests, partial(to_write, room_for=max_new_tokens))
        devices = [self.backbone.device] if self.backbone.device.type == "cuda" else []
        # The caller's own random numbers go on as if nothing had been drawn.
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            try:
                return self._done(self._answering.generate(asked, config))
            except (ValueError, TypeError, ArithmeticError) as cause:
                # Some values are only looked at when they are used.
                if not options:
                    raise
                raise refused_options(cause) from cause

    def _done(self, answers: list[A]) -> list[A]:
        """Answers, after which what was compiled for them may be put away."""
        self._library.trim()
        return answers
