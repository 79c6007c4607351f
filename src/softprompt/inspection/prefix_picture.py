"""An inspected prefix as a picture: norms and drift of every position at every attention site, and which are alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softprompt.inspection.picture import write
from softprompt.inspection.prefix import PrefixInspection


def draw_prefix(inspection: PrefixInspection, title: str, path: Path) -> None:
    """Write a PNG.

    Args:
        inspection: what to draw.
        title: what stands above it.
        path: the file.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows = len(inspection.sites)
    figure = Figure(figsize=(11, 2 * max(3.2, 1.4 + 0.14 * rows)), layout="constrained")
    figure.suptitle(title)
    sides = (
        ("keys", [site.keys for site in inspection.sites], inspection.key_cosines),
        ("values", [site.values for site in inspection.sites], inspection.value_cosines),
    )
    for (norms, drifts, alike), (name, parts, cosines) in zip(figure.subplots(2, 3), sides, strict=True):
        _map(figure, norms, [part.norms for part in parts], f"{name}: norm (L2)")
        if all(part.drifts is not None for part in parts):
            _map(figure, drifts, [part.drifts for part in parts], f"{name}: distance from the start (L2)")
        else:
            drifts.text(0.5, 0.5, "start not known", ha="center", va="center", transform=drifts.transAxes)
            drifts.set_axis_off()
        for axes in (norms, drifts):
            axes.set_xlabel("position")
            axes.set_ylabel("attention site")
        _map(figure, alike, cosines, f"{name}: cosine of two positions", vmin=-1, vmax=1, cmap="RdBu_r")
        alike.set_xlabel("position")
        alike.set_ylabel("position")
    write(figure, path)


def _map(figure: Any, axes: Any, table: Any, title: str, **how: Any) -> None:
    image = axes.imshow(table, aspect="auto", interpolation="nearest", **{"cmap": "viridis"} | how)
    axes.set_title(title, fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axes)
