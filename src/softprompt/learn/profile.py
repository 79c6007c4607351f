"""Where the time of a training step goes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from transformers import TrainerCallback

from softprompt.checks import check_whole
from softprompt.errors import OutputError
from softprompt.run.counts import BEFORE, IN_FRONT, ROW_PADDING, ROWS, Counts
from softprompt.run.forward import Forward
from softprompt.run.ranges import PREFIX, Part

_LOG = logging.getLogger("softprompt")

STEPS = 5

Times = tuple[float, float]
"""Seconds, with and without what was called from there."""

AGAIN = "texts, read again"

# What is done anew in the first step (memory is taken, kernels are chosen) is not what the others cost.
_BEFORE = 2

_OPERATORS: Mapping[str, Sequence[str]] = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul"),
    "attention": ("attention", "softmax"),
    "copies": ("copy_", "cat", "clone", "index_select", "gather", "index", "contiguous", "fill_"),
}


class Profile(TrainerCallback):
    """Measures some steps of a training by torch's profiler, and writes what they cost into a folder.

    Files: `profile.txt`, a table to read; `profile.json`, the same in numbers; `trace.json`, every operation of the
    last step that was measured, for chrome://tracing or Perfetto. What stood in files of these names is replaced. A
    run that is too short for it is measured at its last step. Evaluations are no part of it.

    Args:
        folder: is made where it is missing.
        steps: how many are measured; the two before them are not.

    Raises:
        SettingsError: `steps` is no whole number above 0.
        OutputError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, *, steps: int = STEPS) -> None:
        check_whole("steps", steps)
        self.folder, self._steps = Path(folder), steps
        self._profiler: torch.profiler.profile | None = None
        self._measured = 0
        self._ran, self._before = Counts(), Counts()
        self._read = self._read_before = 0
        self._times: dict[str, Times] = {}
        self.report: str | None = None
        """The table, once it is there."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self.folder):
                pass
        except OSError as cause:
            what = (
                "it is a file, not a folder"
                if self.folder.is_file()
                else f"a profile cannot be written: {cause.strerror}"
            )
            raise OutputError(what, where=str(self.folder), instead="Give another folder.") from cause

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        last_chance = state.global_step == state.max_steps - 1
        if self.report is not None or not (state.global_step >= _BEFORE or last_chance):
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        # One for each step: what is measured or saved between two steps is no part of them.
        self._profiler = torch.profiler.profile(activities=activities)
        forward: Forward = model.objective.forward
        self._before, self._read_before = forward.ran.copy(), forward.reader.ran
        self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        forward: Forward = model.objective.forward
        self._measured += 1
        self._ran += forward.ran - self._before
        self._read += forward.reader.ran - self._read_before
        for event in profiler.key_averages():
            total, own = self._times.get(event.key, (0.0, 0.0))
            self._times[event.key] = (total + event.cpu_time_total / 1e6, own + event.self_cpu_time_total / 1e6)
        if self._measured == self._steps or state.global_step == state.max_steps:
            self._write(profiler, forward.backbone.lowers)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Stopped early, by another callback.
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None

    def _write(self, profiler: torch.profiler.profile, lowers: bool) -> None:
        found = measured(self._times, self._measured)
        again = {AGAIN: self._read / self._measured}
        found |= {"tokens": self._ran.each(self._measured) | again, "steps": self._measured, "lowers": lowers}
        self.report = table(found)
        try:
            (self.folder / "profile.txt").write_text(self.report + "\n", encoding="utf-8")
            (self.folder / "profile.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            profiler.export_chrome_trace(str(self.folder / "trace.json"))
        except OSError as cause:  # of no weight beside what is being learned
            _LOG.warning("%s: the profile could not be written: %s", self.folder, cause.strerror or cause)


def measured(times: Mapping[str, Times], steps: int) -> dict[str, Any]:
    """Seconds a step, of its parts and of kinds of operators.

    Args:
        times: of what has a name for the profiler.
    """
    total = {key.removeprefix(PREFIX): whole / steps for key, (whole, _) in times.items() if key.startswith(PREFIX)}
    whole = total.pop(Part.STEP, 0.0)
    forward = total.pop(Part.FORWARD, 0.0)
    parts = {str(part): total.get(part, 0.0) for part in Part if part not in (Part.STEP, Part.FORWARD)}
    parts |= {
        "loss": forward - sum(parts.values()),
        "backward": whole - forward,
        "update": sum(spent for key, (spent, _) in times.items() if key.startswith("Optimizer.step")) / steps,
    }
    own: dict[str, float] = dict.fromkeys((*_OPERATORS, "other operators"), 0.0)
    for key, (_, spent) in times.items():
        if key.startswith("aten::"):
            own[_kind(key.removeprefix("aten::"))] += spent / steps
    return {"seconds": whole + parts["update"], "parts": parts, "operators": own}


def _kind(operator: str) -> str:
    if "attention" in operator:
        return "attention"
    return next((kind for kind, names in _OPERATORS.items() if operator in names), "other operators")


def table(found: Mapping[str, Any]) -> str:
    """What was measured, to read; with what to change where that is clear."""
    whole, tokens = found["seconds"], found["tokens"]
    lines = [f"A step, mean of {found['steps']}: {1000 * whole:.0f} ms"]
    for title, key in (("part", "parts"), ("operators", "operators")):
        lines += ["", f"{title:<44}{'ms':>9}{'share':>8}"]
        lines += [
            f"{name:<44}{1000 * seconds:>9.1f}{seconds / whole:>8.1%}"
            for name, seconds in found[key].items()
            if seconds >= 5e-5
        ]
    lines += ["", f"{'tokens that were run':<44}{'number':>9}"]
    lines += [f"{name:<44}{number:>9.0f}" for name, number in tokens.items()]
    advice = list(_advice(found))
    return "\n".join([*lines, *([""] if advice else []), *advice])


def _advice(found: Mapping[str, Any]) -> Iterator[str]:
    """What to change, where that is clear."""
    tokens = found["tokens"]
    front, rows, padding = tokens[IN_FRONT], tokens[ROWS], tokens[ROW_PADDING]
    if tokens[AGAIN]:
        yield "Texts are read again at every step: give them more memory (--cache-bytes), or a folder (--cache)."
    if front > 0.2 * (front + rows + padding):
        yield "Virtual tokens in front are computed at every step: fewer cost less, and behind the text even less."
    if padding > 0.2 * (rows + padding):
        yield "Rows are padded to the longest of their step: --group-by-length lets rows of like length stand together."
    if found["lowers"] and front and rows > tokens[BEFORE]:
        yield "Most tokens are run in every row, at every step: put {soft} behind the text, and texts are read once."
