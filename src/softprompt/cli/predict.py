"""`softprompt predict`"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.common import (
    BatchSize,
    Cache,
    Debug,
    Dtype,
    Json,
    Model,
    Prompt,
    Quantization,
    Quiet,
    With,
    load_asked,
    load_backbone_of,
    show_json,
    verb,
)
from softprompt.errors import SettingsError

if TYPE_CHECKING:
    from softprompt.answer.answers import Answer
    from softprompt.answer.engine import Engine

# What `str.splitlines`, and with it many a reader, takes for the end of a line.
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@verb
def predict(
    folder: Prompt,
    fields: Annotated[
        list[str] | None, typer.Argument(metavar="[FIELD=VALUE]...", help="One row, field by field.")
    ] = None,
    others: With = None,
    text: Annotated[str | None, typer.Option(help="One row, where its only field is called text.")] = None,
    data: Annotated[str | None, typer.Option(help="Many rows: .jsonl, .csv, .tsv, .parquet, or a Hub dataset.")] = None,
    model: Model = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    batch_size: BatchSize = 32,
    cache: Cache = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="How an ensemble chooses: vote, or mean (the highest mean probability).", show_default="vote"
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of a generated answer.", show_default="32")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer one row, or every row of a file, with a saved prompt or an ensemble of them.

    A row's answer is printed on a line of its own, - where no label applies; with --json as an object with
    probabilities.
    """
    from dataclasses import asdict

    from softprompt.answer.engine import Engine
    from softprompt.answer.requests import CLASSIFYING, no_writers
    from softprompt.collection import SavedPrompts
    from softprompt.run.vote import check_by

    rows = _rows(fields, text, data)
    prompt = load_asked(folder, others)
    check_by(by, isinstance(prompt, SavedPrompts))
    if isinstance(prompt, SavedPrompts) and prompt.task.kind not in CLASSIFYING:
        raise no_writers(prompt, str(folder))
    if max_new_tokens is not None and prompt.task.kind != "generation":
        raise SettingsError(f"a {prompt.task.kind} writes nothing", where="--max-new-tokens", instead="Leave it out.")
    backbone = load_backbone_of(prompt, model, dtype, quantization, cache)
    engine = Engine(backbone, batch_size=batch_size)
    name = str(folder)
    engine.add(name, prompt)
    cut = 0
    progress = not quiet and data is not None
    for answer in _answers(engine, name, rows, by, max_new_tokens or 32, progress):
        cut += answer.cut > 0
        if as_json:
            show_json(asdict(answer))
        else:
            # One line a row, so that answers line up with the rows of the file.
            shown = _shown(answer, alone=data is None)
            typer.echo(shown if data is None else _one_line(shown))
    if cut and not as_json:
        typer.echo(f"{cut} of {len(rows)} rows were too long; their fields were shortened.", err=True)


def _one_line(text: str) -> str:
    return "".join(repr(c)[1:-1] if c in _LINE_ENDS else c for c in text)


def _rows(fields: Sequence[str] | None, text: str | None, data: str | None) -> Sequence[Mapping[str, Any]]:
    from softprompt import data as files

    if sum((bool(fields), text is not None, data is not None)) != 1:
        raise SettingsError(
            "it takes a row or a file of rows, and one of them only",
            instead='Give --data FILE, --text "...", or FIELD=VALUE for each field.',
        )
    if data is not None:
        return files.read(data)
    if text is not None:
        return [{"text": text}]
    row = {}
    for pair in fields or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise SettingsError(f"{pair!r} is no FIELD=VALUE", instead='Write text="..." and the like.')
        row[name] = value
    return [row]


def _answers(
    engine: Engine, name: str, rows: Sequence[Mapping[str, Any]], by: Any, max_new_tokens: int, progress: bool
) -> Iterator[Answer]:
    from softprompt.learn.progress import bar

    # Many rows a call, so that the engine can put rows of like length together; not all, so that answers flow.
    portion = 8 * engine.batch_size
    with bar("Answering", len(rows), "row", show=progress, leave=False) as answering:
        for start in range(0, len(rows), portion):
            requests = [(name, row) for row in rows[start : start + portion]]
            answers = engine.answer(requests, by=by, max_new_tokens=max_new_tokens)
            answering.update(len(requests))
            yield from answers


def _shown(answer: Answer, *, alone: bool) -> str:
    """An answer for people; one that stands alone with its probability."""
    from softprompt.answer.answers import Classification, Embedding, Labelling, Span, Tagging

    match answer:
        case Classification(label, probabilities):
            return f"{label} ({probabilities[label]:.1%})" if alone else label
        case Labelling(labels, probabilities):
            return ", ".join(f"{label} ({probabilities[label]:.1%})" if alone else label for label in labels) or "-"
        case Tagging(labels):
            return " ".join("-" if label is None else label for label in labels)
        case Span(text, _, _, probability):
            return f"{text} ({probability:.1%})" if alone else text
        case Embedding(vector):
            return " ".join(f"{number:.6g}" for number in vector)
    return answer.text
