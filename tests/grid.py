"""Every method on every family for every kind of task: what comes of it. `python tests/grid.py` writes docs/grid.md.

A cell is green where a prompt can be learned, saved, loaded and answered with (see `check`), or holds what is said
where it cannot. The table in the docs is what `test_grid.py` holds every cell against.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import reference
import tiny
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.errors import RequestError
from softprompt.learn.training import train
from softprompt.prompts import (
    ContextAwarePromptTuning,
    HardPrompt,
    Method,
    MultitaskPromptTuning,
    PrefixTuning,
    PromptTuning,
    PTuning,
)
from softprompt.text.task import OF_TOKENS, Kind, Task
from toys import LABELS, ROWS

METHODS: dict[str, Method] = {
    "hard prompt": HardPrompt(),
    "prompt tuning": PromptTuning(tokens=3),
    "prefix tuning": PrefixTuning(tokens=3),
    "prefix tuning, MLP": PrefixTuning(tokens=2, projection=True, middle=8, init="random"),
    "P-tuning": PTuning(tokens=3),
    "multitask": MultitaskPromptTuning(tokens=3),
    "context-aware": ContextAwarePromptTuning(examples=2),
}
FAMILIES = ("llama", "gpt2", "qwen3", "gemma3", "bloom", *tiny.ENCODERS, *tiny.ENCODER_DECODERS)
KINDS: tuple[Kind, ...] = (
    "classification",
    "multi-label",
    "generation",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "feature-extraction",
)
TABLE = Path(__file__).parent.parent / "docs" / "grid.md"
GREEN = "yes"

_INTRODUCTION = """# Methods, families, tasks

What can be learned on what, seen by the tests: for each cell a prompt was learned on a tiny random model of the family,
the model stayed as it was to the last bit, the prompt moved, was saved and loaded, and answered rows of different
lengths in one batch as it answered each alone. Where it says something else than *yes*, the note below the table is
what softprompt says. Written by `make grid`; every cell is held against this page by `tests/test_grid.py`.
"""


def task_of(kind: Kind, family: str) -> tuple[Task, list[dict[str, Any]]]:
    """A small task of a kind, as a family can answer it, and rows."""
    words = [row["text"].split() for row in ROWS]
    answers: dict[str, list[Any]] = {
        "token-classification": [[LABELS[len(word) % 2] for word in row] for row in words],
        "question-answering": [row[-1] for row in words],
        "multi-label": [[], ["sports"], LABELS, ["business"], [], LABELS],
    }
    rows = [
        {**row, "label": answer}
        for row, answer in zip(ROWS, answers.get(kind, [r["label"] for r in ROWS]), strict=False)
    ]
    encoder = family in tiny.ENCODERS and kind != "generation"
    place = "\nTopic: {mask}" if encoder else "\nTopic: {label}"
    template = "Article: {text}" + (place if kind in ("classification", "multi-label", "generation") else "")
    labels = None if kind in ("generation", "question-answering", "feature-extraction") else LABELS
    return Task(template, labels, kind=kind, none="won" if kind == "multi-label" else None), rows


def check(method: Method, family: str, kind: Kind) -> str:
    """Goes through a cell; returns `GREEN`, or what is refused and what to use instead.

    Raises:
        AssertionError: something that was not refused does not hold.
    """
    backbone = reference.backbone(family)
    before = {name: t.clone() for name, t in backbone.model.state_dict().items()}
    task, rows = task_of(kind, family)
    learns = method.LEARNS or bool(task.outputs)
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, "learning_rate": 0.05} if learns else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompt"
        try:
            result = train(backbone, task, method, rows, output=path, progress=False, **options)
        except RequestError as refused:
            if not refused.instead:
                raise AssertionError(f"{method} on {family} for {kind}: what to do instead is not said") from refused
            return f"{refused.what}. {refused.instead}"
        loaded = artifact.load(path, backbone, training=learns)
    assert all(torch.equal(before[name], t) for name, t in backbone.model.state_dict().items())
    if learns:
        assert loaded.state is not None
        now = loaded.tensors()
        moved = [bool((now[name] != start).any()) for name, start in loaded.state.start.items() if start.numel()]
        # Where the encoder's states are read, a prefix of the decoder is never looked at.
        idle = family in tiny.ENCODER_DECODERS and kind in {*OF_TOKENS, "feature-extraction"}
        assert any(moved) if idle else all(moved) and moved
    engine = Engine(backbone)
    engine.add("kept", result.prompt)
    engine.add("loaded", loaded)
    requests = [("loaded", row) for row in rows[:4]]
    together = engine.answer([*requests, *(("kept", row) for row in rows[:4])], max_new_tokens=3)
    for number, request in enumerate(requests):
        (alone,) = engine.answer([request], max_new_tokens=3)
        for answer in (together[number], together[number + 4]):
            assert_alike(answer, alone)
    return GREEN


def assert_alike(these: Any, those: Any) -> None:
    """Two answers are the same, up to rounding."""
    assert type(these) is type(those)
    for name, one in vars(these).items():
        one, other = _numbers(one), _numbers(vars(those)[name])
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        else:
            assert one == other, name


def _numbers(value: Any) -> Any:
    values = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else [value]
    return torch.tensor(values) if values and all(isinstance(v, float) for v in values) else value


def write() -> None:
    """Go through all cells and write the page."""
    from tqdm import tqdm

    gc.freeze()
    parts, cells = [_INTRODUCTION], len(KINDS) * len(FAMILIES) * len(METHODS)
    with tqdm(desc="Cells", total=cells, unit="cell") as progress:
        for kind in KINDS:
            notes: list[str] = []
            lines = [f"| {kind} | {' | '.join(METHODS)} |", "|---" * (len(METHODS) + 1) + "|"]
            for family in FAMILIES:
                row = [family]
                for method in METHODS.values():
                    try:
                        found = _general(check(method, family, kind), family)
                    except Exception as cause:
                        cause.add_note(f"{method} on {family} for {kind}")
                        raise
                    if found != GREEN and found not in notes:
                        notes.append(found)
                    row.append(found if found == GREEN else f"[{notes.index(found) + 1}]")
                    progress.update(1)
                lines.append(f"| {' | '.join(row)} |")
            parts.append(f"## {kind}\n\n" + "\n".join(lines) + "\n")
            if notes:
                parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)) + "\n")
    TABLE.write_text("\n".join(parts), encoding="utf-8")


def _general(found: str, family: str) -> str:
    return found.replace(f"tiny-{family}", "the model")


def written() -> dict[tuple[str, str, str], str]:
    """What the page says of each method, family and kind."""
    found = {}
    for section in TABLE.read_text(encoding="utf-8").split("\n## ")[1:]:
        lines = section.splitlines()
        kind = lines[0].strip()
        notes = {line.partition(". ")[0]: line.partition(". ")[2] for line in lines if line[:1].isdigit()}
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        for row in rows[1:]:
            for method, cell in zip(rows[0][1:], row[1:], strict=True):
                found[method, row[0], kind] = notes[cell.strip("[]")] if cell.startswith("[") else cell
    return found


if __name__ == "__main__":
    sys.exit(write())
