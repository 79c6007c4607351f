"""The worked examples of a run: chosen from its rows, or those of the prompt it begins from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softprompt.backbone.backbone import Backbone
from softprompt.errors import SettingsError
from softprompt.prompts.method import Method, place_slots
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task
from softprompt.text.worked import WorkedExamples
from softprompt.text.write import work


def worked_examples(
    backbone: Backbone, task: Task, method: Method, rows: Sequence[Mapping[str, Any]], seed: int
) -> WorkedExamples | None:
    """What the method's recipe makes of the rows; None where it has none.

    Raises:
        RequestError: the template, or a row, or all of them together cannot be used so.
    """
    recipe = method.recipe()
    if recipe is None:
        return None
    placed = task.with_template(place_slots(task.template, method))
    return work(placed, backbone.tokenizer, rows, recipe, seed, backbone.positions)


def worked_before(saved: SavedPrompt, task: Task, method: Method, where: str) -> WorkedExamples | None:
    """The worked examples of the prompt that a run begins from; None where there are none.

    Args:
        saved: of the same method, with its parameters.
        where: how an error calls it.

    Raises:
        SettingsError: they were made by another recipe, or for another task.
    """
    if method.recipe() is None or saved.state is None:
        return None
    if saved.method.recipe() != method.recipe():
        raise SettingsError(
            f"its worked examples were made by {saved.method.recipe()}, not by {method.recipe()}",
            where=where,
            instead="Give the settings that it was trained with.",
        )
    texts = [place_slots(t.template, method).with_text_alone().source for t in (saved.task, task)]
    if texts[0] != texts[1] or saved.task.words != task.words:
        raise SettingsError(
            f"its worked examples are for the template {texts[0]!r} and the label words {list(saved.task.words)}, "
            f"not {texts[1]!r} and {list(task.words)}",
            where=where,
            instead="Give the template and the labels that it was trained with.",
        )
    return method.worked_in(saved.state.parameters)
