"""The same work by softprompt and by PEFT, in turns, in one process: medians and ratios.

    python -m benchmarks.speed [--repeats 5] [--dtypes float32,bfloat16] [--only TEXT,...] [--json FILE] [--write]

SmolLM2-135M and MiniLM-L6. Both sides have the same weights, token ids, starting prompt and AdamW. Where both compute
the same thing, losses are compared first; answers are compared with those of the plain model, row by row. `--write`
puts the table into docs/speed.md and both READMEs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils import logging

from benchmarks.speed import memory, report
from benchmarks.speed.table import ENCODER, MEMORY, OVER_EPOCHS, TIMES, Asked
from benchmarks.speed.workbench import DTYPES, Case, Work, Workbench

ENOUGH = 8.0
"""Seconds of one comparison after which it is repeated no more than `FEWEST` times."""

FEWEST, SLOW = 3, 8.0
"""Where one turn takes more than `SLOW` seconds, it is repeated twice."""

RESULTS = Path(__file__).parents[1] / "results" / "speed.json"


def seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compared(case: Case, repeats: int) -> dict[str, float]:
    """The median time of each side, over repeats in which they take turns."""
    times: dict[str, list[float]] = {side: [] for side in case.sides}
    turn = sum(map(seconds, case.sides.values()))
    began = time.perf_counter()
    for done in range(repeats):
        if done >= (FEWEST if turn < SLOW else 2) and time.perf_counter() - began > ENOUGH:
            break
        for side, work in case.sides.items():
            times[side].append(seconds(work))
    return {side: statistics.median(measured) for side, measured in times.items()}


def timed(key: str, asked: Asked, bench: Workbench | None, dtype: str, repeats: int) -> list[dict[str, Any]]:
    """The rows of the table that one comparison gives."""
    case = asked.make(bench)  # type: ignore[arg-type]
    medians = compared(case, repeats)
    over = medians["bare" if asked.bare else "peft"]
    row = {
        "key": key,
        "work": case.name,
        "dtype": dtype,
        "unit": "s",
        **medians,
        "ratio": over / medians["ours"],
        "bare": medians.get("bare"),
        "against": "bare" if asked.bare else "peft",
        "least": asked.least,
        "aim": asked.aim,
        "note": case.note,
    }
    rows = [row]
    if case.once is not None and key in OVER_EPOCHS:
        work, epochs = case.once
        read = statistics.median(seconds(work) for _ in range(FEWEST))
        ours, peft = epochs * medians["ours"] + read, epochs * medians["peft"]
        least, aim = OVER_EPOCHS[key]
        more = {"key": f"{key}-epochs", "work": f"the same, {epochs} epochs with reading", "bare": None}
        rows.append(
            {**row, **more, "ours": ours, "peft": peft, "ratio": peft / ours, "least": least, "aim": aim}
            | {"note": f"from the medians; the texts were read in {read:.2f} s"}
        )
    return rows


def weighed(key: str, asked: Asked, dtype: str) -> dict[str, Any]:
    """A row of the table about memory."""
    ours, peft = (memory.measured(key, side, dtype) for side in ("ours", "peft"))
    name = f"peak memory, {'context-aware, as above' if 'context' in key else 'train, P=100 in front, B=32, T=48'}"
    return {
        "key": key,
        "work": name,
        "dtype": dtype,
        "unit": "bytes",
        "ours": ours,
        "peft": peft,
        "bare": None,
        "ratio": ours / peft,
        "against": "peft",
        "least": asked.least,
        "aim": asked.aim,
        "note": "above the loaded model",
    }


def chosen(table: Mapping[str, Asked], only: str) -> dict[str, Asked]:
    return {key: asked for key, asked in table.items() if not only or any(part in key for part in only.split(","))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    known = ", ".join((*MEMORY, *TIMES, *ENCODER))
    parser.add_argument("--only", default="", help=f"only the rows whose key holds one of these; keys are {known}")
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    parser.add_argument("--write", action="store_true", help="put all rows into benchmarks/results and the documents")
    asked = parser.parse_args()
    if asked.write and asked.only:
        parser.error("--write puts whole tables into the documents, --only measures a part")
    if not any(chosen(table, asked.only) for table in (TIMES, ENCODER, MEMORY)):
        parser.error(f"--only {asked.only}: no row is called so; keys are {known}")
    asked.json = asked.json or (RESULTS if asked.write else None)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtypes = asked.dtypes.split(",")
    times, encoders, peaks = (chosen(table, asked.only) for table in (TIMES, ENCODER, MEMORY))
    rows: list[dict[str, Any]] = []
    if asked.json is not None:
        asked.json.parent.mkdir(exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(dtypes) * (len(times) + len(peaks)) + len(encoders))
        for dtype in dtypes:
            # Before this process has models of its own.
            for key, row in peaks.items():
                progress.update(bar, description=f"{key}, {dtype}")
                rows.append(weighed(key, row, dtype))
                progress.advance(bar)
            bench = Workbench(dtype) if times else None
            for key, row in times.items():
                progress.update(bar, description=f"{key}, {dtype}")
                rows += timed(key, row, bench, dtype, asked.repeats)
                progress.advance(bar)
            del bench
        for key, row in encoders.items():
            progress.update(bar, description=key)
            rows += timed(key, row, None, "float32", asked.repeats)
            progress.advance(bar)
    found = {"machine": report.machine(), "rows": rows}
    report.show(found)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")
    if asked.write:
        report.write(found)


if __name__ == "__main__":
    main()
