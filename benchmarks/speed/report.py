"""The figures as tables: on the terminal, in docs/speed.md and in both READMEs."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
PLACES = {
    ROOT / "docs" / "speed.md": ("work", "PEFT", "softprompt", "ratio", "asked", "bare model", ""),
    ROOT / "README.md": ("work", "PEFT", "softprompt", "ratio", "ratio in bfloat16"),
    ROOT / "README.ko.md": ("작업", "PEFT", "softprompt", "비율", "bfloat16에서의 비율"),
}
BEGIN, END = "<!-- speed: written by `make bench` -->\n", "<!-- /speed -->"


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    names = ("torch", "transformers", "peft")
    model = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if platform.system() == "Linux" else None
    )
    return {
        "processor": model[1] if model else platform.processor(),
        "threads": torch.get_num_threads(),
        **{name: version(name).split("+")[0] for name in names},
    }


def show(found: Mapping[str, Any]) -> None:
    """On the terminal."""
    table = Table(title=", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    for column in ("work", "", "PEFT", "softprompt", "ratio", "at least", "aim", "bare model", ""):
        table.add_column(column, justify="left" if column in ("work", "") else "right")
    for row in found["rows"]:
        table.add_row(
            row["work"],
            row["dtype"],
            amount(row, "peft"),
            amount(row, "ours"),
            ("" if reached(row) else "[red]") + ratio(row),
            f"{row['least']:g}",
            f"{row['aim']:g}",
            amount(row, "bare"),
            row["note"],
        )
    Console(width=190).print(table)


def write(found: Mapping[str, Any]) -> None:
    """Into the documents, where they have a place for it."""
    for path, columns in PLACES.items():
        put(path, BEGIN, END, whole(found, columns) if path.parent.name == "docs" else brief(found["rows"], columns))


def put(path: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Have lines stand between two marks of a document."""
    before, there, rest = path.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not there or not closed:
        raise SystemExit(f"{path} has no place for it, between {begin.strip()} and {end}")
    path.write_text(before + begin + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


def whole(found: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """One table for each dtype."""
    lines = [described(found["machine"])]
    for dtype in dict.fromkeys(row["dtype"] for row in found["rows"]):
        lines += ["", f"**{dtype}**", "", *header(columns)]
        for row in found["rows"]:
            if row["dtype"] == dtype:
                mark = "" if reached(row) else " (missed)"
                cells = (
                    row["work"],
                    amount(row, "peft"),
                    amount(row, "ours"),
                    f"**{ratio(row)}**{mark}",
                    f"{row['least']:g}, aim {row['aim']:g}",
                    amount(row, "bare"),
                    row["note"],
                )
                lines.append(line(cells))
    return lines


def described(machine: Mapping[str, Any]) -> str:
    """What the figures were taken on, in a line."""
    libraries = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "peft"))
    return f"{machine['processor']}, {machine['threads']} threads; {libraries}."


def brief(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """One table, float32 with the ratios in bfloat16 beside."""
    others = {row["key"]: row for row in rows if row["dtype"] == "bfloat16"}
    lines = header(columns)
    for row in rows:
        if row["dtype"] == "float32":
            other = others.get(row["key"])
            cells = (row["work"], amount(row, "peft"), amount(row, "ours"), ratio(row), ratio(other) if other else "")
            lines.append(line(cells))
    return lines


def header(columns: Sequence[str]) -> list[str]:
    return [line(columns), "|" + "---|" * len(columns)]


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def amount(row: Mapping[str, Any], side: str) -> str:
    value = row.get(side)
    if value is None:
        return ""
    return f"{value:.2f} s" if row["unit"] == "s" else f"{value / 1e9:.2f} GB"


def ratio(row: Mapping[str, Any]) -> str:
    of = " of bare" if row["against"] == "bare" else ""
    return f"{row['ratio']:.2f}x{of}" if row["ratio"] < 10 else f"{row['ratio']:.1f}x"


def reached(row: Mapping[str, Any]) -> bool:
    return bool(row["ratio"] <= row["least"] if row["unit"] == "bytes" else row["ratio"] >= row["least"])
