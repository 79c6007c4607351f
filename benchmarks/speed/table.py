"""What is compared, and what is asked of each ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.speed import answering, encoder, training
from benchmarks.speed.workbench import Case, Workbench


@dataclass(frozen=True)
class Asked:
    """A row of the table.

    Attributes:
        make: makes the comparison.
        least: the ratio that has to be reached; of times PEFT's over ours, of memory ours over PEFT's.
        aim: the one that is aimed at.
        bare: whether it is the bare model's time over ours, and not PEFT's.
    """

    make: Callable[[Workbench], Case]
    least: float
    aim: float
    bare: bool = False


TIMES: Mapping[str, Asked] = {
    "front-20": Asked(lambda b: training.prompt(b, 20, 8, 32), 1.7, 2.2),
    "front-20-bare": Asked(lambda b: training.prompt(b, 20, 32, 32), 0.85, 0.95, bare=True),
    "front-100": Asked(lambda b: training.prompt(b, 100, 32, 48), 3.5, 4.5),
    "behind": Asked(lambda b: training.prompt(b, 10, 16, 200, behind=True), 10, 20),
    "context-aware": Asked(lambda b: training.context_aware(b, 8, 400, 8, 40), 5.5, 9),
    "multitask": Asked(lambda b: training.multitask(b, 4, 20, 32, 32), 1.5, 2.5),
    "prefix-100": Asked(lambda b: training.prefix(b, 100, 32, 48), 1.7, 2.0),
    "prefix-400": Asked(lambda b: training.prefix(b, 400, 16, 32), 1.7, 2.5),
    "generate": Asked(lambda b: answering.mixed(b, 8, 32, 20, 24, 8), 3, 5),
    "classify": Asked(lambda b: answering.mixed(b, 32, 32, 20, 24, 0), 4.5, 8),
    "one-text": Asked(lambda b: answering.one_text(b, 32, 10, 400), 11, 15),
}
"""Times on SmolLM2-135M."""

OVER_EPOCHS = {"behind": (7.0, 12.0)}
"""The same over several epochs, what is read once included."""

ENCODER: Mapping[str, Asked] = {
    "encoder-prompt": Asked(lambda _: encoder.training("prompt tuning", 20, 32, 64), 1.0, 1.5),
    "encoder-prefix": Asked(lambda _: encoder.training("prefix", 20, 32, 64), 1.0, 1.5),
}
"""Times on MiniLM-L6, in float32."""

MEMORY: Mapping[str, Asked] = {
    "memory-front": Asked(lambda b: training.prompt(b, 100, 32, 48), 0.22, 0.15),
    "memory-context-aware": Asked(lambda b: training.context_aware(b, 8, 400, 8, 40), 0.12, 0.08),
}
"""Peaks of memory above the loaded model, on SmolLM2-135M."""
