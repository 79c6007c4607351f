"""Rows from a file or from the Hub: JSON Lines, CSV, Parquet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from softprompt.errors import DataError

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]*))?(?:\[(?P<split>[^\]]+)\])?", re.ASCII)
# The csv module refuses longer fields than 128 KiB unless told otherwise.
_LONGEST_FIELD = 2**31 - 1


class Row(dict[str, Any]):
    """A row that knows where it stands.

    Attributes:
        where: file and line, or file and row, for messages.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where


def read(source: str | Path) -> list[Row]:
    """Read all rows.

    Args:
        source: a `.jsonl`, `.csv`, `.tsv` or `.parquet` file, or a dataset on the Hub: `owner/name`,
            `owner/name:config`, `owner/name[split]` (split "train" unless said otherwise).

    Raises:
        DataError: no such file or dataset, a kind that is not read, no row in it, or a line that cannot be read.
    """
    path = Path(source)
    try:
        path.is_dir()
    except OSError as cause:  # a name that is too long, a folder that may not be entered
        raise DataError(f"it cannot be read: {cause.strerror}", where=str(source)[:200]) from cause
    if path.is_dir():
        raise DataError("it is a folder", where=str(source), instead=f"Give a {_kinds()} file.")
    if path.exists():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(f"{path.suffix or 'no ending'} is not read", where=str(source), instead=f"Give {_kinds()}.")
        try:
            rows = list(reader(path))
        except OSError as cause:
            raise DataError(f"it cannot be read: {cause.strerror or cause}", where=str(source)) from cause
        except UnicodeDecodeError as cause:
            raise DataError(
                f"it is not UTF-8: {cause.reason}", where=str(source), instead="Save it as UTF-8."
            ) from cause
    else:
        rows = _from_hub(str(source))
    if not rows:
        raise DataError("there is no row in it", where=str(source), instead="Give at least one.")
    return rows


def _json_lines(path: Path) -> Iterator[Row]:
    # Not readlines: a text may hold other line separators than these.
    with path.open(encoding="utf-8-sig", newline=None) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                values = json.loads(line.rstrip())
            except (ValueError, RecursionError) as cause:  # not JSON; a number too long; brackets too deep
                reason = f"{cause.msg} at character {cause.colno}" if isinstance(cause, json.JSONDecodeError) else cause
                raise DataError(
                    f"it is no JSON: {reason}",
                    where=where,
                    instead='Write one object a line: {"text": "...", "label": "..."}.',
                ) from cause
            if not isinstance(values, dict):
                raise DataError(
                    f"it is a JSON {_json_kind(values)}, not an object",
                    where=where,
                    instead='Write one object a line: {"text": "...", "label": "..."}.',
                )
            yield Row(values, where)


def _json_kind(value: Any) -> str:
    kinds = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}
    return kinds.get(type(value), "null")


def _delimited(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            names = reader.fieldnames or []
            if len(set(names)) < len(names):
                raise DataError(
                    f"a column stands twice: {', '.join(map(repr, names))}",
                    where=f"{path}, line {reader.line_num}",
                    instead="Give each its own name.",
                )
            for values in reader:
                where = f"{path}, line {reader.line_num}"
                if None in values or None in values.values():
                    raise DataError(
                        f"it does not have the {len(names)} columns of the first line",
                        where=where,
                        instead="Put a text that holds a quote, a line break or the delimiter in quotes.",
                    )
                yield Row(values, where)
        except csv.Error as cause:
            # The line it stopped in; `DictReader` itself counts whole rows only.
            raise DataError(f"it is no CSV: {cause}", where=f"{path}, line {reader.reader.line_num}") from cause


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as cause:
        raise DataError(f"it is no Parquet: {cause}", where=str(path)) from cause
    for number, values in enumerate(table.to_pylist(), 1):
        yield Row(values, f"{path}, row {number}")


def _from_hub(source: str) -> list[Row]:
    hub = _HUB_ID.fullmatch(source)
    if hub is None or Path(source).suffix.lower() in _READERS:
        raise DataError(
            "there is no such file", where=source, instead=f"Give a {_kinds()} file, or a Hub id owner/name."
        )
    import datasets

    split = hub["split"] or "train"
    try:
        data = datasets.load_dataset(hub["id"], hub["config"] or None, split=split)
    except Exception as cause:  # the client, its transport and the readers share no base class
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise DataError(
            f"no such file, and the Hub gives no such dataset: {reason}",
            where=source,
            instead=f"Give a {_kinds()} file.",
        ) from cause
    return [Row(_with_names(values, data.features), f"{source}[{split}], row {i}") for i, values in enumerate(data, 1)]


def _with_names(values: dict[str, Any], features: Any) -> dict[str, Any]:
    """Class numbers as the names they stand for; lists of them, too."""
    named = dict(values)
    for name, feature in features.items():
        found, inner = values[name], getattr(feature, "feature", None)
        if hasattr(feature, "int2str"):
            named[name] = _name(found, feature)
        elif hasattr(inner, "int2str") and isinstance(found, list):
            named[name] = [_name(one, inner) for one in found]
    return named


def _name(number: Any, feature: Any) -> Any:
    return feature.int2str(number) if isinstance(number, int) and number >= 0 else number


def _kinds() -> str:
    return ", ".join(_READERS)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".csv": lambda path: _delimited(path, ","),
    ".tsv": lambda path: _delimited(path, "\t"),
    ".parquet": _parquet,
}
