"""How a training step grows with virtual tokens, text, rows and tasks, beside what the plan predicts; a picture.

    python -m benchmarks.speed.growth [--repeats 3] [--plot docs/growth.png] [--json FILE]

SmolLM2-135M, float32, a prompt in front. The plan runs `B * T + K * P` tokens a step: every row's own, and each task's
virtual tokens once. The law is a straight line through steps of the bare model over few and many tokens; nothing of it
is fitted to what it is compared with. Beside it the law for a prompt that is run in every row, `B * (T + P)`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from torch import nn
from tqdm import tqdm
from transformers.utils import logging

from benchmarks.speed import report
from benchmarks.speed.workbench import Workbench, examples, our_step
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Filling, Forward

matplotlib.use("Agg")
from matplotlib import pyplot

RESULTS = Path(__file__).parents[1] / "results" / "growth.json"

USUAL = {"P": 20, "T": 32, "B": 16, "K": 1}
GROWING: Mapping[str, Sequence[int]] = {
    "P": (10, 20, 50, 100, 200, 400),
    "T": (8, 16, 32, 64, 128),
    "B": (1, 2, 4, 8, 16, 32),
    "K": (1, 2, 4, 8, 16),
}
NAMES = {"P": "P, virtual tokens", "T": "T, tokens of a text", "B": "B, rows", "K": "K, tasks mixed"}
FEW, MANY = 64, 1024
"""Tokens of the two steps of the bare model that the law goes through."""


def median(work: Callable[[], object], repeats: int) -> float:
    work()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def step(bench: Workbench, size: Mapping[str, int]) -> Callable[[], object]:
    texts, targets = bench.ids(size["B"], size["T"]), bench.ids(size["B"], 1)[:, 0]
    prompts = [nn.Parameter(bench.start(size["P"])) for _ in range(size["K"])]
    rows = examples(texts, targets, size["P"])
    which = [row % size["K"] for row in range(size["B"])]
    return our_step(Forward(bench.backbone), rows, lambda: [Filling(VirtualTokens(p)) for p in prompts], prompts, which)


def measured(repeats: int) -> dict[str, Any]:
    bench = Workbench("float32")
    few, many = (median(bench.bare(bench.ids(tokens // 32, 32)), max(5, repeats)) for tokens in (FEW, MANY))
    each = (many - few) / (MANY - FEW)
    law = {"fixed": few - each * FEW, "a token": each}
    found: dict[str, Any] = {"machine": report.machine(), "law": law, "growth": {}}
    sizes = [(name, USUAL | {name: value}) for name, values in GROWING.items() for value in values]
    for name, size in tqdm(sizes, desc="Growth", unit="size"):
        seconds = median(step(bench, size), repeats)
        once, every = size["B"] * size["T"] + size["K"] * size["P"], size["B"] * (size["T"] + size["P"])
        laws = {"law, once": once, "law, every row": every}
        point = {name: size[name], "seconds": seconds}
        point |= {law_name: law["fixed"] + each * tokens for law_name, tokens in laws.items()}
        found["growth"].setdefault(name, []).append(point)
    return found


def plot(found: Mapping[str, Any], path: Path) -> None:
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.8), sharey=False)
    for axis, (name, points) in zip(axes, found["growth"].items(), strict=True):
        at = [p[name] for p in points]
        axis.plot(at, [p["seconds"] for p in points], "o-", color="#1b6ca8", label="measured")
        axis.plot(at, [p["law, once"] for p in points], "--", color="#1b6ca8", alpha=0.6, label="law: B·T + K·P tokens")
        axis.plot(at, [p["law, every row"] for p in points], ":", color="#b03a2e", label="law: B·(T + P) tokens")
        fixed = ", ".join(f"{k}={v}" for k, v in USUAL.items() if k != name)
        axis.set(xlabel=NAMES[name], title=fixed, ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds a step")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, default=report.ROOT / "docs" / "growth.png")
    parser.add_argument("--json", type=Path, default=RESULTS)
    asked = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    found = measured(asked.repeats)
    asked.json.write_text(json.dumps(found, indent=2) + "\n")
    plot(found, asked.plot)


if __name__ == "__main__":
    main()
