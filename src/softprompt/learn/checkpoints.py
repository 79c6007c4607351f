"""The checkpoints of a run: a folder beside its output, which one run at a time may use."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from softprompt.artifact import MANIFEST
from softprompt.errors import OutputError, SettingsError

_LOG = logging.getLogger("softprompt")

_STATE = "trainer_state.json"
_TEACHERS = "teachers"
_RUN, _PARTIAL_RUN = "run.json", ".run.json.partial"


def folder_for(output: Path) -> Path:
    """Where the checkpoints of a run stand that saves to `output`."""
    return output.with_name(output.name + ".checkpoints")


def teachers_in(folder: Path) -> Path:
    """Where, among a run's checkpoints, the teachers stand that it trains first, each with checkpoints of its own."""
    return folder / _TEACHERS


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """No other run may use the folder meanwhile; the lock goes with the process that holds it.

    Raises:
        OutputError: another run holds it, or the lock cannot be written.
    """
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise OutputError(
            "another run is training there", where=str(folder), instead="Wait for it, or give another output."
        ) from None
    except OSError as cause:
        raise OutputError(f"it cannot be written to: {cause.strerror}", where=str(folder)) from cause
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def make_ready(folder: Path, identity: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Empty the folder for a new run, or leave it as it is for one that goes on.

    Args:
        identity: what an interrupted run and the one that goes on must have in common.
        resume: whether to go on, where there is something to go on from.
        overwrite: whether an interrupted run may be thrown away.

    Raises:
        OutputError: something stands there that may not be thrown away, or it cannot be written to.
        SettingsError: the interrupted run had other settings; the message names them.
    """
    record = folder / _RUN
    if not _is_free(folder) and not record.is_file():
        raise OutputError(
            "something other than a training run stands there",
            where=str(folder),
            instead="Checkpoints are kept there while training: move it away, or give another output.",
        )
    begun = _is_begun(folder)
    if begun and not overwrite and not resume:
        raise OutputError(
            "an interrupted run stands there",
            where=str(folder),
            instead="Go on with resume (--resume), or begin anew with overwrite (--overwrite).",
        )
    if begun and resume:
        before = json.loads(record.read_text())
        changed = [name for name, value in identity.items() if before.get(name) != value]
        if changed:
            raise SettingsError(
                f"the interrupted run had another {', '.join(changed)}",
                where=str(folder),
                instead="Give what was given then, or begin anew: overwrite (--overwrite) without resume.",
            )
        return
    if resume:
        _LOG.warning("%s: no interrupted run stands there, so this one begins anew.", folder)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: whoever resumes must be able to read it.
        partial = folder / _PARTIAL_RUN
        partial.write_text(json.dumps(identity, indent=2))
        os.replace(partial, record)
    except OSError as cause:
        raise OutputError(f"it cannot be written to: {cause.strerror}", where=str(folder)) from cause


def _is_free(folder: Path) -> bool:
    """Whether nothing stands there, or only what is left of a run that was stopped before it began."""
    return not folder.exists() or (folder.is_dir() and all(p.name == _PARTIAL_RUN for p in folder.iterdir()))


def _is_begun(folder: Path) -> bool:
    """Whether there is something to go on from: a checkpoint, or a teacher that has one or is trained."""
    teachers = teachers_in(folder)
    begun = any(last_checkpoint(place) is not None for place in (folder, *teachers.glob("*.checkpoints")))
    return begun or any(teachers.glob(f"*/{MANIFEST}"))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None where there is none.

    The state is the last file of a checkpoint to be written, so one that lacks it was being written when the run ended.
    """
    whole = [path for path in folder.glob("checkpoint-*") if step_of(path) >= 0]
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """After how many steps it was written; -1 where it is not whole."""
    try:
        return int(json.loads((checkpoint / _STATE).read_text())["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def history_of(checkpoint: Path) -> list[dict[str, float]]:
    """What was logged until it was written."""
    return json.loads((checkpoint / _STATE).read_text())["log_history"]
