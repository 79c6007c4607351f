"""`softprompt demo`"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.common import Debug, Json, Quiet, load_backbone, show_json, show_table, verb

if TYPE_CHECKING:
    from softprompt.demo.course import Outcome


# The demonstration's own folder: what stands there is its own work, and is replaced unasked.
_OUT = Path("prompts/demo-bbc-news")


@verb
def demo(
    out: Annotated[Path | None, typer.Option(help="The folder for the learned prompt.", show_default=str(_OUT))] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a prompt that stands there.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of articles and of the training.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Learn a prompt on real news with a real model, in minutes on two cores.

    SmolLM2-135M sorts BBC news into five topics: first with three hard prompts, then with ten learned vectors.
    """
    from softprompt import artifact
    from softprompt.demo import course

    began = time.monotonic()
    folder = out or _OUT
    overwrite = overwrite or out is None
    artifact.check_output(folder, overwrite=overwrite)
    typer.echo("Loading SmolLM2-135M (bfloat16); it stays frozen.", err=True)
    outcome = course.run(
        load_backbone("smollm2", "bfloat16"),
        seed,
        folder,
        overwrite=overwrite,
        progress=not quiet,
        say=lambda line: typer.echo(line, err=True),
    )
    seconds = time.monotonic() - began
    if as_json:
        show_json(_as_json(outcome, folder, seconds))
    else:
        _show(outcome, folder, seconds)


def _as_json(outcome: Outcome, out: Path, seconds: float) -> dict[str, object]:
    return {
        "articles": outcome.articles,
        "hard": dict(outcome.hard),
        "learned": outcome.learned,
        "bytes": outcome.training.prompt.nbytes,
        "path": str(out),
        "unseen": [
            {"headline": article.headline, "topic": article.label, "answer": answer.label}
            for article, answer in outcome.unseen
        ],
        "seconds": round(seconds, 1),
    }


def _show(outcome: Outcome, out: Path, seconds: float) -> None:
    prompt = outcome.training.prompt
    typer.echo()
    show_table(
        ["headline", "topic", "answer", "probability"],
        [
            (article.headline, article.label, answer.label, f"{answer.probabilities[answer.label]:.0%}")
            for article, answer in outcome.unseen
        ],
        title="Three articles it has not seen, by their headlines",
        numbers=["probability"],
    )
    show_table(
        ["prompt", "learned numbers", "accuracy"],
        [
            *((f"hard, {name}", "0", f"{accuracy:.1%}") for name, accuracy in outcome.hard.items()),
            (f"learned, {prompt.values.tokens} vectors", f"{prompt.nbytes // 4:,}", f"{outcome.learned:.1%}"),
        ],
        title=f"{outcome.articles} articles it has not seen",
        numbers=["learned numbers", "accuracy"],
    )
    typer.echo(f"The prompt is {prompt.nbytes:,} bytes in {out}; the model is as it was. {seconds:.0f} seconds in all.")
    typer.echo(f'Go on: softprompt predict {out} --text "..."   softprompt inspect {out} --plot prompt.png')
