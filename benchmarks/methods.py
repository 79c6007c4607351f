"""All methods at one budget on BBC news: where each starts, how fast it learns, where it ends, over several seeds.

    python benchmarks/methods.py [--model smollm2|minilm] [--seeds 3] [--steps 40] [--only NAME,...] [--json FILE]
                                 [--plot FILE]

SmolLM2-135M in bfloat16 (or MiniLM-L6 in float32, with a trained head), five topics, every article cut to its first 60
tokens; 250 articles to learn from, 100 to choose the best step by, 200 others to measure on, drawn anew for each seed.
Every method has the same articles, steps and rows a step; what differs, seconds among it, is in the table. The start is
the prompt before the first step.

Multitask prompt tuning begins from three source tasks, three topics each under other wordings, learned from 60 articles
a topic that stand in none of these sets; their training is not in its seconds. Curves are over the 100 articles, every
five steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from softprompt import (
    Backbone,
    ContextAwarePromptTuning,
    HardPrompt,
    MultitaskPromptTuning,
    PrefixTuning,
    PromptTuning,
    PTuning,
    Source,
    Task,
    evaluate,
    train,
    train_sources,
)
from softprompt.demo.news import LABELS, news
from softprompt.prompts.head import Head
from softprompt.prompts.method import Method
from softprompt.saved import SavedPrompt

TOKENS = 60
"""What is kept of an article."""

BEHIND = "Article: {text}\n{soft:10}Topic: {label}"
DECODER: Mapping[str, tuple[Method, str]] = {
    "hard prompt": (HardPrompt(), "Article: {text}\nCategory: {label}"),
    "prompt tuning": (PromptTuning(), BEHIND),
    "P-tuning": (PTuning(), "Article: {text}\n{soft:5}Topic:{soft:5} {label}"),
    "prefix tuning": (PrefixTuning(tokens=10), "Article: {text}\nTopic: {label}"),
    "multitask": (MultitaskPromptTuning(), BEHIND),
    "context-aware": (ContextAwarePromptTuning(examples=5), "Article: {text}\nTopic: {label}"),
}
# An encoder without a language modelling head: every method has a head beside it, the hard prompt is a linear probe.
ENCODER: Mapping[str, tuple[Method, str]] = {
    "hard prompt": (HardPrompt(), "{text}"),
    "prompt tuning": (PromptTuning(tokens=10), "{text}"),
    "P-tuning": (PTuning(tokens=10), "{text}"),
    "prefix tuning": (PrefixTuning(tokens=10), "{text}"),
    "multitask": (MultitaskPromptTuning(tokens=10), "{text}"),
}
SOURCES = {
    "desk": ("Article: {text}\n{soft:10}Desk: {label}", ("business", "politics", "tech")),
    "section": ("News: {text}\n{soft:10}Section: {label}", ("entertainment", "sports", "tech")),
    "about": ("Article: {text}\n{soft:10}About: {label}", ("politics", "sports", "entertainment")),
}

LEVELS = (0.7, 0.75, 0.8, 0.85, 0.9)

Rows = Sequence[Mapping[str, str]]
Found = dict[str, Any]
"""What one run gave."""


@dataclass(frozen=True)
class Articles:
    """The rows of one seed; `others` are for the source tasks."""

    learn: Rows
    choose: Rows
    test: Rows
    others: Rows


def articles(backbone: Backbone, seed: int) -> Articles:
    """Draw the rows of a seed, cut."""
    drawn = news(seed, learn=50, choose=20, test=100)

    def cut(article: Any) -> dict[str, str]:
        ids = backbone.tokenizer(article.row["text"], add_special_tokens=False)["input_ids"][:TOKENS]
        return {"text": backbone.tokenizer.decode(ids), "label": article.label}

    test = [cut(a) for a in drawn.test]
    # Sixty articles of each topic are the sources', the other forty are measured on.
    others = [row for label in LABELS for row in [r for r in test if r["label"] == label][40:]]
    return Articles(
        [cut(a) for a in drawn.learn],
        [cut(a) for a in drawn.choose],
        [row for label in LABELS for row in [r for r in test if r["label"] == label][:40]],
        others,
    )


def task_for(backbone: Backbone, template: str, labels: Sequence[str]) -> Task:
    """The task as the model answers it."""
    return Task(template, labels) if backbone.speaks else Task(template, labels, kind="sequence-classification")


def sources(backbone: Backbone, rows: Rows, seed: int, steps: int, folder: Path) -> Path:
    """The source tasks of multitask prompt tuning, learned."""
    tasks = {
        name: Source(
            task_for(backbone, template if backbone.speaks else "{soft:10}{text}", labels),
            [row for row in rows if row["label"] in labels],
        )
        for name, (template, labels) in SOURCES.items()
    }
    train_sources(
        backbone,
        tasks,
        MultitaskPromptTuning(),
        output=folder,
        seed=seed,
        steps=steps,
        teacher_steps=steps,
        batch_size=16,
    )
    return folder


def at_start(prompt: SavedPrompt) -> SavedPrompt:
    """The prompt before the first step."""
    assert prompt.state is not None, "it was learned"
    start = prompt.state.start
    head = {name.removeprefix("head."): t for name, t in start.items() if name.startswith("head.")}
    values = {name: t for name, t in start.items() if not name.startswith("head.")}
    made = Head.from_tensors(head) if head else None
    return replace(prompt, values=type(prompt.values).from_tensors(values), head=made, state=None)


def run(
    backbone: Backbone, case: tuple[Method, str], rows: Articles, seed: int, steps: int, start: Path | None
) -> Found:
    """One method on the articles of one seed."""
    method, template = case
    task = task_for(backbone, template, LABELS)
    options: dict[str, Any] = {"seed": seed}
    if method.LEARNS or task.outputs:
        options |= {"steps": steps, "batch_size": 16, "eval_every": 5, "start": start}
    return measured(backbone, task, method, rows.learn, rows.choose, rows.test, **options)


def measured(
    backbone: Backbone, task: Task, method: Method, learn: Rows, choose: Rows, test: Rows, **options: Any
) -> Found:
    """Accuracies on `test`, before and after, and how training went."""
    began = time.monotonic()
    result = train(backbone, task, method, learn, choose, **options)
    seconds = time.monotonic() - began
    learns = result.prompt.state is not None
    after = evaluate(backbone, result.prompt, test)["accuracy"]
    before = evaluate(backbone, at_start(result.prompt), test)["accuracy"] if learns else after
    numbers = result.prompt.training["trained_parameters"] if learns else 0
    curve = {int(e["step"]): e["eval_accuracy"] for e in result.history if "eval_accuracy" in e}
    return {"start": before, "accuracy": after, "seconds": seconds, "parameters": numbers, "curve": curve}


def show(found: Mapping[str, Sequence[Found]]) -> None:
    """The tables."""
    console = Console(width=140)
    table = Table("method", "start", "accuracy, each seed", "mean", "spread", "seconds", "learned numbers")
    for name, seeds in found.items():
        ends = [s["accuracy"] for s in seeds]
        table.add_row(
            name,
            f"{statistics.mean(s['start'] for s in seeds):.1%}",
            " ".join(f"{end:.1%}" for end in ends),
            f"{statistics.mean(ends):.1%}",
            f"{statistics.stdev(ends):.1%}" if len(ends) > 1 else "",
            f"{statistics.mean(s['seconds'] for s in seeds):.0f}",
            f"{seeds[0]['parameters']:,}",
        )
    console.print(table)
    table = Table("first step with", *(f"{level:.0%}" for level in LEVELS))
    for name, seeds in found.items():
        firsts = [[reached(s["curve"], level) for s in seeds] for level in LEVELS]
        if any(s["curve"] for s in seeds):
            table.add_row(name, *(" ".join("-" if f is None else str(f) for f in each) for each in firsts))
    console.print(table)


def reached(curve: Mapping[int, float], level: float) -> int | None:
    """The first step with at least that accuracy."""
    return min((step for step, accuracy in curve.items() if accuracy >= level), default=None)


def draw(found: Mapping[str, Sequence[Found]], path: Path) -> None:
    """Mean curves, with the best and the worst seed as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, seeds in found.items():
        curves = [s["curve"] for s in seeds]
        if not any(curves):
            axes.axhline(statistics.mean(s["accuracy"] for s in seeds), color="grey", linestyle="--", label=name)
            continue
        steps = sorted(curves[0])
        means = [statistics.mean(c[step] for c in curves) for step in steps]
        (line,) = axes.plot(steps, means, marker="o", markersize=3, label=name)
        low, high = ([edge(c[step] for c in curves) for step in steps] for edge in (min, max))
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.12)
    axes.set_xlabel("step (16 articles each)")
    axes.set_ylabel("accuracy on 100 articles")
    axes.set_ylim(0.15, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--model", choices=["smollm2", "minilm"], default="smollm2")
    parser.add_argument("--only")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    backbone = Backbone.load(asked.model, dtype="bfloat16" if asked.model == "smollm2" else "float32")
    cases = DECODER if backbone.speaks else ENCODER
    found: dict[str, list[Found]] = {}
    for seed in range(asked.seeds):
        rows = articles(backbone, seed)
        for name in asked.only.split(",") if asked.only else cases:
            with TemporaryDirectory() as folder:
                start = None
                if cases[name][0].NAME == MultitaskPromptTuning.NAME:
                    start = sources(backbone, rows.others, seed, asked.steps, Path(folder) / "sources")
                found.setdefault(name, []).append(run(backbone, cases[name], rows, seed, asked.steps, start))
            show(found)
            if asked.json:
                asked.json.write_text(json.dumps({"steps": asked.steps, "found": found}, indent=2) + "\n")
            if asked.plot:
                draw(found, asked.plot)


if __name__ == "__main__":
    main()
