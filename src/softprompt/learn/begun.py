"""Saved prompts that a training begins from."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.backbone.backbone import Backbone
from softprompt.collection import SavedPrompts, load_any
from softprompt.errors import SettingsError
from softprompt.prompts.method import Method
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task

_LOG = logging.getLogger("softprompt")

Start = str | Path | SavedPrompt | SavedPrompts
"""Where a training begins: a prompt's folder or that of several, or such prompts."""


@dataclass(frozen=True)
class Begun:
    """Saved prompts that a training begins from.

    Attributes:
        prompts: with their parameters.
        where: how an error calls them.
    """

    prompts: Sequence[SavedPrompt]
    where: str

    @classmethod
    def of(cls, start: Start, backbone: Backbone, method: Method) -> Begun:
        """Read them.

        Raises:
            SettingsError: one is of another method, or its parameters were not saved.
            ArtifactError, MismatchError: one cannot be read, or belongs to another backbone.
        """
        given = isinstance(start, (SavedPrompt, SavedPrompts))
        where = "start" if given else str(start)
        found = start if isinstance(start, (SavedPrompt, SavedPrompts)) else load_any(start, training=True)
        found.check(backbone, where)
        prompts = list(found.members.values()) if isinstance(found, SavedPrompts) else [found]
        for saved in prompts:
            if saved.method.NAME != method.NAME or saved.state is None:
                raise SettingsError(
                    f"it is a {saved.method.NAME} prompt"
                    + (", not " + method.NAME if saved.state is not None else " without its parameters"),
                    where=where,
                    instead=f"Give a {method.NAME} prompt with its training.safetensors.",
                )
        return cls(prompts, where)

    def note_heads(self, task: Task) -> None:
        """Say why heads that were saved are not taken over, where a training of this task begins."""
        theirs = [_described(saved.task) for saved in self.prompts if saved.head is not None]
        if not theirs or (theirs == [_described(task)] and len(self.prompts) == 1):
            return
        what = f"its head is for a {theirs[0]}" if len(self.prompts) == 1 else "it holds the heads of several tasks"
        outcome = "its head is begun anew" if task.outputs else "none is taken over"
        _LOG.warning("%s: %s, and this task is a %s: %s.", self.where, what, _described(task), outcome)


def _described(task: Task) -> str:
    return task.kind + (f" with the labels {', '.join(task.labels)}" if task.labels else "")
