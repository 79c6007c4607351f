"""`softprompt inspect`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.common import Debug, Json, Model, Prompt, load_backbone, show_json, show_table, verb
from softprompt.cli.several import as_object, show_members
from softprompt.errors import SettingsError

if TYPE_CHECKING:
    from softprompt.collection import SavedPrompts
    from softprompt.inspection.measure import Inspection
    from softprompt.inspection.prefix import Part, PrefixInspection


@verb
def inspect(
    folder: Prompt,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture (PNG) into this file.")] = None,
    nearest: Annotated[
        int, typer.Option(min=1, help="Vocabulary tokens to name for each virtual token at the input.")
    ] = 3,
    model: Model = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a soft prompt has become: the nearest words, norms, and drift from the start.

    Of a prefix, which stands inside the attention, it shows the norms and the drift of keys and values at each
    attention site, and how much alike the positions are. No word is near a key or a value.

    Of a folder of several prompts it shows which they are, and how good.
    """
    from dataclasses import asdict

    from softprompt import artifact
    from softprompt.collection import holds_several, load_all
    from softprompt.inspection.measure import inspect as run
    from softprompt.inspection.picture import draw
    from softprompt.inspection.prefix import PrefixInspection
    from softprompt.inspection.prefix_picture import draw_prefix

    if holds_several(folder):
        _several(load_all(folder), folder, plot, as_json)
        return
    prompt = artifact.load(folder, training=artifact.holds_training(folder))
    # float32 whatever it was trained in: the vocabulary is looked at, nothing is run.
    inspection = run(prompt, load_backbone(model or prompt.backbone_name, "float32"), nearest=nearest)
    title = f"{folder.resolve().name}: {prompt.method.NAME}, {prompt.backbone_name}"
    if plot is not None:
        if isinstance(inspection, PrefixInspection):
            draw_prefix(inspection, title, plot)
        else:
            draw(inspection, title, plot)
    if as_json:
        show_json({"method": prompt.method.NAME, "template": prompt.task.template.source, **asdict(inspection)})
        return
    typer.echo(f"{prompt.method.NAME} for {prompt.backbone_name}, {prompt.nbytes:,} bytes")
    typer.echo(f"template: {prompt.task.template.source!r}")
    if isinstance(inspection, PrefixInspection):
        _show_prefix(inspection)
    elif not inspection.tokens:
        head = "" if prompt.head is None else f", and a trained head with {prompt.head.weight.shape[0]} outputs"
        typer.echo(f"It has no virtual token: it is text{head}.")
        return
    else:
        _show_tokens(inspection)
    if plot is not None:
        typer.echo(f"Picture: {plot}")


def _show_tokens(inspection: Inspection) -> None:
    from softprompt.inspection.picture import shown

    rows = [
        (
            str(t.index),
            str(t.slot),
            "  ".join(f"{shown(n.token)} {n.cosine:.2f}" for n in t.nearest),
            f"{t.norm:.2f}",
            "?" if t.drift is None else f"{t.drift:.2f}",
        )
        for t in inspection.tokens
    ]
    show_table(["#", "slot", "nearest tokens (cosine)", "norm", "drift"], rows, numbers=["#", "slot", "norm", "drift"])
    low, median, high = inspection.vocabulary_norms
    typer.echo(f"For comparison, norms of the vocabulary: median {median:.2f}, 5% to 95%: {low:.2f} to {high:.2f}.")


def _show_prefix(inspection: PrefixInspection) -> None:
    """A row for each attention site: means over the positions."""
    numbers = [f"{part} {what}" for part in ("keys'", "values'") for what in ("norm", "drift", "cosine")]
    names = _short([site.name for site in inspection.sites])
    rows = [
        (str(number), names[number], *(cell for part in (site.keys, site.values) for cell in _means(part)))
        for number, site in enumerate(inspection.sites)
    ]
    show_table(["#", "site", *numbers], rows, numbers=["#", *numbers])
    typer.echo(
        f"Means over {inspection.positions} position(s); the cosine is that of two positions with each other. No word "
        "is near a key or a value: a word's own depend on what stands before it."
    )


def _short(names: Sequence[str]) -> list[str]:
    """Names without the dotted parts that all begin with, or all end with."""
    parts = [name.split(".") for name in names]
    for _ in range(2):
        while len({p[0] for p in parts}) == 1 and min(map(len, parts)) > 1:
            parts = [p[1:] for p in parts]
        parts = [p[::-1] for p in parts]
    return [".".join(p) for p in parts]


def _means(part: Part) -> tuple[str, str, str]:
    def mean(numbers: Sequence[float] | None) -> str:
        return "?" if numbers is None else f"{sum(numbers) / len(numbers):.2f}"

    return mean(part.norms), mean(part.drifts), "-" if part.cosine is None else f"{part.cosine:.2f}"


def _several(prompts: SavedPrompts, folder: Path, plot: Path | None, as_json: bool) -> None:
    one = folder / next(iter(prompts.members))
    if plot is not None:
        raise SettingsError("a picture shows one prompt", where="--plot", instead=f"Inspect one of them: {one}.")
    if as_json:
        show_json(as_object(prompts, folder))
        return
    what = "an ensemble of" if prompts.kind == "ensemble" else "different tasks, with a part in common:"
    typer.echo(
        f"{what} {len(prompts.members)} {prompts.first.method.NAME} prompts for {prompts.backbone_name}, "
        f"{prompts.nbytes:,} bytes in all"
    )
    show_members(prompts)
    typer.echo(f"Each by itself: softprompt inspect {one}")
