"""What every verb shares: common options, how results are shown and how errors end."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.errors import SoftpromptError

if TYPE_CHECKING:
    from softprompt.backbone.backbone import Backbone
    from softprompt.collection import SavedPrompts
    from softprompt.saved import SavedPrompt

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bars.")]
Prompt = Annotated[Path, typer.Argument(metavar="DIR", help="A saved prompt's folder.", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option(help="The backbone, where it is not found under the name the prompt was trained with."),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16.", show_default="as the prompt was trained"),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        help="Keep the model's weights in fewer bits: int8 (with torchao) or nf4 (with bitsandbytes); or none.",
        show_default="as the prompt was trained",
    ),
]
With = Annotated[
    list[Path] | None,
    typer.Option(
        "--with",
        metavar="DIR",
        help="Another prompt of the same task and model; all of them answer together. May be given more than once.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="A folder where what texts leave in the model is kept, for other runs and tasks to find.",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows run at once.")]


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb its ending: an error is one message and an exit status, Ctrl-C no traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        as_json = kwargs.get("as_json", False)
        _quiet_libraries()
        try:
            function(*args, **kwargs)
        except SoftpromptError as error:
            if kwargs.get("debug"):
                raise
            _report(error, as_json)
            raise typer.Exit(error.exit_status) from None
        except KeyboardInterrupt as stop:
            if kwargs.get("debug"):
                raise
            advice = "".join(f"; {hint}" for hint in stop.args)
            typer.echo(f"softprompt: interrupted{advice}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of a pipe has seen enough. What is still buffered must not raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if kwargs.get("debug") or isinstance(error, (typer.Exit, typer.Abort)):
                raise
            kind = type(error).__name__
            unforeseen = SoftpromptError(f"{kind}: {error}" if str(error) else kind, instead="--debug shows where.")
            _report(unforeseen, as_json)
            raise typer.Exit(unforeseen.exit_status) from None

    return wrapped


def _report(error: SoftpromptError, as_json: bool) -> None:
    if as_json:
        details = {"type": type(error).__name__, "message": str(error), "where": error.where, "instead": error.instead}
        typer.echo(json.dumps({"error": details}, ensure_ascii=False), err=True)
    else:
        typer.echo(f"softprompt: {error}", err=True)


def _quiet_libraries() -> None:
    """Only what softprompt has to say is shown."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")


def load_backbone(name: str, dtype: str, **options: Any) -> Backbone:
    """The backbone, its loading bar kept off the terminal: it takes a second. `options` as in
    `Backbone.load`; "none" is no quantization."""
    from transformers.utils import logging

    from softprompt.backbone.backbone import Backbone

    logging.disable_progress_bar()
    if options.get("quantization") == "none":
        options["quantization"] = None
    return Backbone.load(name, dtype=dtype, **options)


def load_asked(folder: Path, others: Sequence[Path] | None) -> SavedPrompt | SavedPrompts:
    """The prompt that is asked, or the ensemble.

    Args:
        others: prompts that answer together with that of `folder`.

    Raises:
        SettingsError: the folder holds prompts that each have a task of their own.
    """
    from softprompt.collection import SavedPrompts, ensemble, load_any

    if others:
        return ensemble([folder, *others])
    found = load_any(folder)
    if isinstance(found, SavedPrompts):
        found.check_ensemble(str(folder))
    return found


def load_backbone_of(
    prompt: SavedPrompt | SavedPrompts,
    model: str | None,
    dtype: str | None,
    quantization: str | None,
    cache: Path | None,
) -> Backbone:
    """The backbone of a prompt, loaded as it was while training in all that is not said."""
    way = prompt.quantization if quantization is None else quantization
    return load_backbone(model or prompt.backbone_name, dtype or prompt.dtype, quantization=way, cache=cache)


def show_json(result: Any) -> None:
    typer.echo(json.dumps(result, ensure_ascii=False))


def show_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    numbers: Sequence[str] = (),
) -> None:
    """A table on standard output.

    Args:
        numbers: the columns that are set flush right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        # Text, not markup: a cell may hold brackets.
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def show_metrics(metrics: Mapping[str, float]) -> None:
    show_table(["metric", "value"], [(name, f"{value:.4g}") for name, value in metrics.items()], numbers=["value"])


def show_cut(facts: Mapping[str, Any], name: str = "") -> None:
    """How many rows of which set were shortened, if any; from the facts of a training, of the task of that name."""
    sets = [(which, facts[f"{which}_rows_cut"], facts[f"{which}_rows"]) for which in ("training", "evaluation")]
    counts = " and ".join(f"{cut} of {rows} {which} rows" for which, cut, rows in sets if cut)
    if counts:
        typer.echo(f"{f'{name}: ' if name else ''}{counts} were too long; their fields were shortened.")
