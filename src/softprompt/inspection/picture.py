"""An inspection as a picture: norms, neighbours and drift of every virtual token."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from softprompt.errors import OutputError
from softprompt.inspection.measure import Inspection

_BLUE, _ORANGE, _GREY = "#3b6ea8", "#d97b29", "#b8bec6"


def draw(inspection: Inspection, title: str, path: Path) -> None:
    """Write a PNG.

    Args:
        inspection: what to draw; at least one virtual token.
        title: what stands above it.
        path: the file.

    Raises:
        OutputError: there is nothing to draw, or the file cannot be written.
    """
    # The object interface: it opens no window and leaves no state behind.
    from matplotlib.figure import Figure

    tokens = inspection.tokens
    if not tokens:
        raise OutputError("the prompt has no virtual token to draw", where=str(path))
    height = max(3.2, 1.6 + 0.26 * len(tokens))
    figure = Figure(figsize=(11, height), layout="constrained")
    figure.suptitle(title)
    norms, cosines, drifts = figure.subplots(1, 3, sharey=True)
    rows = [t.index for t in tokens]

    low, median, high = inspection.vocabulary_norms
    norms.axvspan(low, high, color=_GREY, alpha=0.45, label="vocabulary, 5% to 95%")
    norms.axvline(median, color=_GREY)
    norms.barh(rows, [t.norm for t in tokens], color=_BLUE, height=0.6, label="now")
    if all(t.start_norm is not None for t in tokens):
        norms.plot([t.start_norm for t in tokens], rows, "o", color=_ORANGE, markersize=4, label="at the start")
    norms.set_xlabel("norm (L2)")
    norms.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=7, frameon=False)

    cosines.barh(rows, [t.nearest[0].cosine for t in tokens], color=_BLUE, height=0.6)
    for token in tokens:
        cosines.annotate(
            _short(shown(token.nearest[0].token)),
            (max(token.nearest[0].cosine, 0), token.index),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            parse_math=False,
        )
    cosines.set_xlim(0, 1.3)
    cosines.set_xticks([0, 0.25, 0.5, 0.75, 1])
    cosines.set_xlabel("cosine with the nearest vocabulary token")

    if all(t.drift is not None for t in tokens):
        drifts.barh(rows, [t.drift for t in tokens], color=_ORANGE, height=0.6)
        drifts.set_xlabel("distance from the start (L2)")
    else:
        drifts.text(0.5, 0.5, "start not known", ha="center", va="center", transform=drifts.transAxes)
    norms.set_ylabel("virtual token")
    _rows(norms, rows)
    for axes in (norms, cosines, drifts):
        axes.spines[["top", "right"]].set_visible(False)
    write(figure, path)


def write(figure: Any, path: Path) -> None:
    """A figure of matplotlib's as a PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with warnings.catch_warnings():
            # A token in a script that the font lacks is drawn as boxes; the table names it.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(path, dpi=150, format="png")
    except OSError as cause:
        raise OutputError(f"it cannot be written: {cause.strerror or cause}", where=str(path)) from cause


def _rows(axes: Any, rows: list[int]) -> None:
    step = max(1, len(rows) // 25)
    axes.set_yticks(rows[::step])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _short(text: str, longest: int = 14) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def shown(token: str) -> str:
    """A token so that its blanks and control characters can be seen."""
    return "".join(c if c.isprintable() and c != " " else "␣" if c == " " else repr(c)[1:-1] for c in token)
