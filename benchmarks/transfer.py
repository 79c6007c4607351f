"""Does a target task that begins from source tasks get there sooner? Multitask against plain prompt tuning.

    python benchmarks/transfer.py [--seeds 3] [--steps 60] [--json FILE]

The articles, source tasks and target of `benchmarks/methods.py`. Both sides have the same rows, steps and virtual
tokens, and are measured every five steps on the same 100 articles; the sources' training is not counted. Reported: the
first step at which each accuracy is reached.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from methods import BEHIND, articles, sources
from softprompt import Backbone, MultitaskPromptTuning, PromptTuning, Task, train
from softprompt.demo.news import LABELS
from softprompt.prompts.method import Method

LEVELS = (0.7, 0.75, 0.8, 0.85, 0.9)


def curve(
    backbone: Backbone,
    method: Method,
    rows: Sequence[Mapping[str, str]],
    held_out: Sequence[Mapping[str, str]],
    **options: object,
) -> dict[int, float]:
    """Accuracy by step."""
    result = train(backbone, Task(BEHIND, LABELS), method, rows, held_out, eval_every=5, batch_size=16, **options)
    return {int(e["step"]): e["eval_accuracy"] for e in result.history if "eval_accuracy" in e}


def reached(found: Mapping[int, float], level: float) -> int | None:
    """The first step with at least that accuracy."""
    return min((step for step, accuracy in found.items() if accuracy >= level), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    backbone = Backbone.load("smollm2", dtype="bfloat16")
    curves: dict[str, list[dict[int, float]]] = {"prompt tuning": [], "multitask": []}
    for seed in range(asked.seeds):
        rows = articles(backbone, seed)
        options = {"seed": seed, "steps": asked.steps}
        curves["prompt tuning"].append(curve(backbone, PromptTuning(), rows.learn, rows.choose, **options))
        with TemporaryDirectory() as folder:
            start = sources(backbone, rows.others, seed, asked.steps, Path(folder) / "sources")
            found = curve(backbone, MultitaskPromptTuning(), rows.learn, rows.choose, start=start, **options)
            curves["multitask"].append(found)
    table = Table("accuracy", *(f"{name}, first step (each seed)" for name in curves))
    for level in LEVELS:
        steps = [[reached(c, level) for c in seeds] for seeds in curves.values()]
        table.add_row(f"{level:.0%}", *(" ".join("-" if s is None else str(s) for s in each) for each in steps))
    Console().print(table)
    for name, seeds in curves.items():
        last = [c[max(c)] for c in seeds]
        Console().print(f"{name}: {statistics.mean(last):.1%} after {asked.steps} steps")
    if asked.json:
        asked.json.write_text(json.dumps({"steps": asked.steps, "curves": curves}, indent=2) + "\n")


if __name__ == "__main__":
    main()
