"""Does a target whose labels stand in no source task get there sooner when it begins from them?

    python benchmarks/transfer.py [--seeds 3] [--steps 40] [--json FILE]

SmolLM2-135M in bfloat16, BBC news, every article cut to its first 60 tokens. The source tasks tell business from
politics, in three wordings; the target tells entertainment, sports and technology apart. Two ways to begin it from
them stand against plain prompt tuning at three learning rates:

    multitask    from the shared prompt and the average of the source tasks' factors (Wang et al. 2023)
    one source   prompt tuning that begins at the prompt learned for one source task (Vu et al. 2022)

All have the same articles, steps and virtual tokens. Accuracies on the way are over the articles the best step is
chosen by, every five steps; those at the end over articles that nothing has seen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from methods import BEHIND, Found, articles, measured, show
from softprompt import Backbone, MultitaskPromptTuning, PromptTuning, Source, Task, train, train_sources
from softprompt.learn.sources import SourcesResult
from softprompt.prompts.method import Method

SEEN = ("business", "politics")
TARGET = ("entertainment", "sports", "tech")
SOURCES = {
    "desk": "Article: {text}\n{soft:10}Desk: {label}",
    "section": "News: {text}\n{soft:10}Section: {label}",
    "about": "Article: {text}\n{soft:10}About: {label}",
}
RATE = PromptTuning.LEARNING_RATE


def target(backbone: Backbone, steps: int, seed: int, folder: Path) -> dict[str, Found]:
    """Every way to the target, for one seed."""
    drawn = articles(backbone, seed)
    learn, choose, test, others = (
        [row for row in rows if row["label"] in labels]
        for rows, labels in (
            (drawn.learn, TARGET),
            (drawn.choose, TARGET),
            (drawn.test, TARGET),
            (drawn.others, SEEN),
        )
    )
    budget: dict[str, Any] = {"seed": seed, "steps": steps, "batch_size": 16}
    # The teachers are the single sources, too: each is trained once.
    teachers = {
        name: train(backbone, Task(template, SEEN), PromptTuning(), others, **budget)
        for name, template in SOURCES.items()
    }
    learned: SourcesResult = train_sources(
        backbone,
        {
            name: Source(Task(template, SEEN), others, teacher=teachers[name].prompt)
            for name, template in SOURCES.items()
        },
        MultitaskPromptTuning(),
        output=folder,
        **budget,
    )
    ways: dict[str, tuple[Method, dict[str, Any]]] = {
        "multitask": (MultitaskPromptTuning(), {"start": learned.path}),
        "one source": (PromptTuning(), {"start": teachers["desk"].prompt}),
        **{f"plain, {rate:g}": (PromptTuning(), {"learning_rate": rate}) for rate in (RATE, 2 * RATE, 4 * RATE)},
    }
    return {
        name: measured(backbone, Task(BEHIND, TARGET), method, learn, choose, test, eval_every=5, **budget, **options)
        for name, (method, options) in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    backbone = Backbone.load("smollm2", dtype="bfloat16")
    found: dict[str, list[Found]] = {}
    for seed in range(asked.seeds):
        with TemporaryDirectory() as folder:
            for name, way in target(backbone, asked.steps, seed, Path(folder) / "sources").items():
                found.setdefault(name, []).append(way)
        show(found)
        if asked.json:
            asked.json.write_text(json.dumps({"steps": asked.steps, "found": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
