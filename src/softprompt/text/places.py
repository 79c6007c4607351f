"""Where in a template a model of each kind answers."""

from __future__ import annotations

from typing import Literal

from softprompt.errors import TemplateError
from softprompt.text.task import OF_TOKENS, Task
from softprompt.text.template import Field, Mask, Slot, Stop
from softprompt.text.tokens import PieceTokenizer

BackboneKind = Literal["decoder", "encoder", "encoder-decoder"]

_A = {"decoder": "a decoder", "encoder": "an encoder", "encoder-decoder": "an encoder-decoder"}


def check_places(task: Task, kind: BackboneKind, tokenizer: PieceTokenizer) -> None:
    """See that a model of a kind answers where the template says.

    Raises:
        TemplateError: it does not, or the tokenizer has not what stands there.
    """
    where, target = f"template {task.template.source!r}", task.template.target
    if isinstance(target, Mask) and kind != "encoder":
        raise TemplateError(
            f"{{mask}} is filled by encoders, and this model is {_A[kind]}",
            where=where,
            instead="Put {label} at the end: there it writes its answer.",
        )
    if isinstance(target, Mask) and tokenizer.mask is None:
        raise TemplateError("the tokenizer has no mask token", where=where, instead="Use a task with a head.")
    if kind == "encoder" and target is not None and not isinstance(target, Mask):
        raise TemplateError(
            "an encoder writes nothing behind a row, so it cannot answer at {label}",
            where=where,
            instead="Put {mask} where it is to answer, or use a task with a head (sequence-classification, ...).",
        )
    if isinstance(target, Mask) and task.kind == "generation":
        raise TemplateError(
            "{mask} is filled by one of the labels, and there are none", where=where, instead="Give labels."
        )
    if kind == "decoder" and task.kind in OF_TOKENS:
        _check_nothing_behind_the_field(task, where)
    if Stop() in task.template.segments and not tokenizer.stop:
        raise TemplateError(
            "{sep} stands in it, but this tokenizer puts nothing behind a text",
            where=where,
            instead="Take {sep} out, or write what is to stand there.",
        )


def _check_nothing_behind_the_field(task: Task, where: str) -> None:
    """Its states would not depend on what stands there: a slot would learn nothing, a question not be heard."""
    segments, field = task.template.segments, task.field
    first = next(i for i, s in enumerate(segments) if isinstance(s, Field) and s.name == field)
    behind = [s.name for s in segments[first:] if isinstance(s, Field) and s.name != field]
    if behind:
        raise TemplateError(
            f"{{{behind[0]}}} stands behind {{{field}}}, and a decoder answers inside it before it has seen that",
            where=where,
            instead=f"Put {{{behind[0]}}} before {{{field}}}, or use an encoder.",
        )
    if any(isinstance(s, Slot) for s in segments[first:]):
        raise TemplateError(
            f"a slot stands behind {{{field}}}, and a decoder answers inside it before it has seen the slot",
            where=where,
            instead=f"Put {{soft}} before {{{field}}}, or use an encoder.",
        )
