"""What the public functions are given is what they ask for: one check, before any work is begun."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softprompt.backbone.backbone import Backbone
from softprompt.checks import check_kind, shown
from softprompt.collection import SavedPrompts
from softprompt.errors import DataError
from softprompt.prompts.method import Method
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task

_KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "backbone": ((Backbone,), 'Give a model: Backbone.load("smollm2").'),
    "task": ((Task,), 'Give Task("{text}\\nTopic: {label}", labels=[...]).'),
    "method": ((Method,), "Give a method, with brackets: PromptTuning()."),
    "prompt": ((SavedPrompt, SavedPrompts), 'Give what was saved: load("prompts/topic"), or load_all of several.'),
    "folder": ((str, Path, SavedPrompt, SavedPrompts), "Give a prompt's folder, or the prompt itself."),
    "sources": ((Mapping,), 'Give tasks by name: {"topic": Source(task, rows), ...}.'),
}
"""What each argument is, and how one is had."""


def check_arguments(**given: Any) -> None:
    """See that arguments are of the kind that their names say.

    Args:
        given: arguments by name, of those in the table.

    Raises:
        SettingsError: one is something else.
    """
    for name, value in given.items():
        check_kind(name, value, *_KINDS[name])


def check_rows(**given: Any) -> None:
    """See that rows are rows: many, that can be counted and gone through more than once.

    Args:
        given: rows by the names of their arguments; None for none.

    Raises:
        DataError: they are text (a file's name, say), a single row, or no sequence at all.
    """
    for name, rows in given.items():
        if isinstance(rows, (str, Path)):
            instead = f"Read the file first: softprompt.data.read({str(rows)[:80]!r})."
        elif isinstance(rows, Mapping):
            instead = 'Give a list of rows: [{"text": "...", "label": "..."}, ...].'
        elif rows is not None and not (hasattr(rows, "__len__") and hasattr(rows, "__iter__")):
            instead = "Give a list of rows: list(...)."
        else:
            continue
        raise DataError(f"{name} is {shown(rows)}, not rows", where=name, instead=instead)
