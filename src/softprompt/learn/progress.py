"""Progress bars: of reading, of training, of evaluating."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback


@contextmanager
def bar(description: str, total: int, unit: str, *, show: bool = True, leave: bool = True) -> Iterator[Any]:
    """A progress bar on standard error; `update(n)` moves it."""
    with tqdm(desc=description, total=total, unit=unit, disable=not show, leave=leave, dynamic_ncols=True) as progress:
        yield progress


class TrainingBar(TrainerCallback):
    """One bar over the optimizer steps, with the loss and the latest evaluation beside it.

    Args:
        title: what stands before it.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(
            desc=self._title, total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        for name in ("loss", "eval_loss", "eval_accuracy"):
            if self._bar is not None and name in (logs or {}):
                self._shown[name] = f"{(logs or {})[name]:.3f}"
                self._bar.set_postfix(self._shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
