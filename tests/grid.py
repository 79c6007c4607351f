"""Every method on every family for every kind of task: what comes of it. `python tests/grid.py` writes docs/grid.md.

A cell is green where a prompt can be learned, saved, loaded and answered with (see `cells`), or holds what is said
where it cannot. The table in the docs is what `test_grid.py` holds every cell against.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import cells
import tiny
from cells import GREEN
from softprompt.prompts import (
    ContextAwarePromptTuning,
    HardPrompt,
    MultitaskPromptTuning,
    PrefixTuning,
    PromptTuning,
    PTuning,
)
from softprompt.text.task import Kind

COLUMNS: Mapping[str, Callable[[str, Kind], str]] = {
    "hard prompt": partial(cells.check, HardPrompt()),
    "prompt tuning": partial(cells.check, PromptTuning(tokens=3)),
    "prefix tuning": partial(cells.check, PrefixTuning(tokens=3)),
    "prefix tuning, MLP": partial(cells.check, PrefixTuning(tokens=2, projection=True, middle=8, init="random")),
    "P-tuning": partial(cells.check, PTuning(tokens=3)),
    "multitask": partial(cells.check, MultitaskPromptTuning(tokens=3)),
    "context-aware": partial(cells.check, ContextAwarePromptTuning(examples=2)),
    "multitask, sources": cells.check_sources,
    "multitask, from sources": cells.check_from_sources,
    "ensemble of 2 (prompt tuning)": cells.check_ensemble,
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

_INTRODUCTION = """# Methods, families, tasks

What can be learned on what, seen by the tests: for each cell a prompt was learned on a tiny random model of the family,
the model stayed as it was to the last bit, the prompt moved, was saved and loaded, and answered rows of different
lengths in one batch as it answered each alone and, but for text, as the plain model answers one row with the prompt
written into it. *Multitask* is one task from scratch; *sources* are two tasks that were trained together, each with a
teacher, and *from sources* is a third that begins from these. The prompts of an ensemble answered together, by vote and
by mean, what their own answers make. Where it says something else than *yes*, the note below the table is
what softprompt says. Written by `make grid`; every cell is held against this page by `tests/test_grid.py`.
"""


def write() -> None:
    """Go through all cells and write the page."""
    from tqdm import tqdm

    gc.freeze()
    parts, total = [_INTRODUCTION], len(KINDS) * len(FAMILIES) * len(COLUMNS)
    with tqdm(desc="Cells", total=total, unit="cell") as progress:
        for kind in KINDS:
            notes: list[str] = []
            lines = [f"| {kind} | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
            for family in FAMILIES:
                row = [family]
                for column in COLUMNS:
                    try:
                        found = cell(column, family, kind)
                    except Exception as cause:
                        cause.add_note(f"{column} on {family} for {kind}")
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


def cell(column: str, family: str, kind: Kind) -> str:
    """What comes of it, as the page says it."""
    return COLUMNS[column](family, kind).replace(f"tiny-{family}", "the model")


def written() -> dict[tuple[str, str, str], str]:
    """What the page says of each column, family and kind."""
    found = {}
    for section in TABLE.read_text(encoding="utf-8").split("\n## ")[1:]:
        lines = section.splitlines()
        kind = lines[0].strip()
        notes = {line.partition(". ")[0]: line.partition(". ")[2] for line in lines if line[:1].isdigit()}
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        for row in rows[1:]:
            for column, said in zip(rows[0][1:], row[1:], strict=True):
                found[column, row[0], kind] = notes[said.strip("[]")] if said.startswith("[") else said
    return found


if __name__ == "__main__":
    sys.exit(write())
