"""`softprompt VERB ...`: the verbs, put together."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from softprompt import __version__
from softprompt.cli import demo, evaluate, inspect, predict, serve, train
from softprompt.cli.common import INTERRUPTED

app = typer.Typer(
    name="softprompt",
    help="One frozen language model, many tasks, each task a file of a few kilobytes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"softprompt {__version__}")
        raise typer.Exit


@app.callback()
def _softprompt(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("inspect")(inspect.inspect)
app.command("serve")(serve.serve)
app.command("demo")(demo.demo)


def main() -> None:
    """The entry point of the `softprompt` command."""
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
