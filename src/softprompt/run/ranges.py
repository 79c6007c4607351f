"""The parts of a training step, by the names a profiler shows them under."""

from __future__ import annotations

from contextlib import AbstractContextManager
from enum import StrEnum

from torch.profiler import record_function

PREFIX = "softprompt: "


class Part(StrEnum):
    """A part of a step. The first two are the whole step but its update, and what of it comes before `backward`."""

    STEP = "step"
    FORWARD = "forward"
    PROMPT = "values of the prompt"
    TEXTS = "texts, kept or read again"
    SHARED = "virtual tokens in front"
    CONTEXT = "what stands before rows, laid out"
    ROWS = "rows"


def within(part: Part) -> AbstractContextManager[object]:
    """What is done in here belongs to a part; costs next to nothing where nobody profiles."""
    return record_function(PREFIX + part)
