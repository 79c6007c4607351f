"""The model itself, asked without a prompt: text or a conversation, as it was taught to go on with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import torch

from softprompt.answer.requests import AskedRow, Entry
from softprompt.backbone.backbone import Backbone
from softprompt.errors import LengthError, RequestError
from softprompt.prompts import HardPrompt
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Filling
from softprompt.run.maker import example_maker
from softprompt.saved import SavedPrompt
from softprompt.text.examples import Example
from softprompt.text.task import Task


class Plain:
    """What stands in the place of a prompt where the model is asked by itself."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        task = Task("{text}{label}")
        nothing = VirtualTokens(torch.zeros(0, backbone.hidden_size))
        saved = SavedPrompt(
            method=HardPrompt(),
            task=task,
            values=nothing,
            backbone_name=backbone.name,
            backbone_fingerprint=backbone.fingerprint,
            tokenizer_fingerprint=backbone.tokenizer_fingerprint,
            dtype=str(backbone.dtype).removeprefix("torch."),
        )
        maker = example_maker(backbone, task)
        self._entry = Entry(saved, maker, maker, Filling(nothing, {}))

    def text(self, text: str, room: int, where: str) -> AskedRow:
        """A row of text, in which the name of a special token is that token.

        Args:
            room: how many tokens will be written.
            where: how an error calls it.

        Raises:
            RequestError: it is empty.
            LengthError: it is too long.
        """
        return self._row(self._backbone.tokenizer(text, verbose=False)["input_ids"], room, where)

    def conversation(self, messages: Sequence[Mapping[str, Any]], room: int, where: str) -> AskedRow:
        """A conversation, by the model's own template; arguments as in `text`.

        Raises:
            RequestError: the model has no template, or it does not take these messages.
            LengthError: it is too long.
        """
        if not self._backbone.tokenizer.chat_template:
            raise RequestError(
                "it has no chat template",
                where=self._backbone.name,
                instead="Ask for a completion of text, or ask one of the prompts.",
            )
        try:
            text = self._backbone.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as cause:
            raise RequestError(f"the model's chat template does not take these: {cause}", where=where) from cause
        tokens = self._backbone.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self._row(tokens, room, where)

    def _row(self, tokens: Sequence[int], room: int, where: str) -> AskedRow:
        if not tokens:
            raise RequestError("there is no token in it", where=where, instead="Give some text.")
        bound = self._backbone.positions
        room = room if self._backbone.kind == "decoder" else 0
        if bound is not None and len(tokens) + room > bound:
            raise LengthError(
                f"{len(tokens)} tokens and {room} that are written are more than the {bound} positions of the model",
                where=where,
                instead="Shorten it, or lower max_tokens.",
            )
        return AskedRow({}, self._entry, Example(tuple(tokens), 0, ()))
