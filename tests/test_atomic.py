"""A folder is whole at every moment, wherever the work stops."""

from __future__ import annotations

import builtins
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from softprompt import atomic

OLD = {"one": b"old one", "two": b"old two" * 1000}
NEW = {"one": b"new one", "two": b"new two" * 2000}
NAMES = tuple(OLD)


class Steps:
    """Counts what `atomic` asks of the disk, half a file's content being a step too, and may interfere at any."""

    def __init__(self, patch: pytest.MonkeyPatch, interfere: Callable[[int], None] = lambda step: None) -> None:
        self.count = 0
        self._interfere = interfere
        for module, name in ((os, "rename"), (os, "fsync"), (os, "mkdir"), (os, "open"), (shutil, "rmtree")):
            patch.setattr(module, name, self._stepping(getattr(module, name)))
        # Content goes through `_Half`, which closes what it is given.
        patch.setattr(atomic, "open", lambda *args: _Half(builtins.open(*args), self.step), raising=False)  # noqa: SIM115

    def step(self) -> None:
        self.count += 1
        self._interfere(self.count)

    def _stepping(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            try:
                self.step()
            except OSError:
                if kwargs.get("ignore_errors"):
                    return None
                raise
            return function(*args, **kwargs)

        return stepping


class _Half:
    """A file that can be stopped when half of its content is on the disk."""

    def __init__(self, file: Any, step: Callable[[], None]) -> None:
        self._file, self._step = file, step

    def __enter__(self) -> _Half:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, content: bytes) -> None:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        self._step()
        self._file.write(content[len(content) // 2 :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.fixture
def target(tmp_path) -> Path:
    """A folder that stands there."""
    atomic.write(tmp_path / "prompt", OLD, replace=False)
    return tmp_path / "prompt"


def steps_of_a_write(target: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        atomic.write(target, NEW, replace=True)
    atomic.write(target, OLD, replace=True)
    assert steps.count >= 12
    return steps.count


def check_the_next_write(target: Path) -> None:
    """Whatever was left behind, the next one succeeds and tidies up."""
    atomic.write(target, NEW, replace=True)
    assert atomic.read(target, NAMES) == NEW
    assert os.listdir(target.parent) == [target.name]


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", [full_disk, KeyboardInterrupt], ids=["full disk", "Ctrl-C"])
def test_an_error_at_any_step_leaves_a_whole_folder(target, error, lasting):
    for at in range(1, steps_of_a_write(target) + 1):
        atomic.write(target, OLD, replace=True)
        raised = None
        with pytest.MonkeyPatch.context() as patch:

            def fail(step: int, at: int = at) -> None:
                if step == at or (lasting and step > at):
                    raise error()

            Steps(patch, fail)
            try:
                atomic.write(target, NEW, replace=True)
            except (OSError, KeyboardInterrupt) as failure:
                raised = failure
        found = atomic.read(target, NAMES)
        assert found in (OLD, NEW), f"half a folder after step {at}"
        # Only where the new folder is in place may it be taken for written, and a full disk must then not be reported.
        if isinstance(raised, OSError):
            assert found == OLD, f"an error, and yet it is replaced, after step {at}"
        if raised is None:
            assert found == NEW, f"no error, and yet it is not written, after step {at}"
        if not lasting:
            assert target.is_dir(), f"set aside and not put back after step {at}"
        check_the_next_write(target)


def test_an_error_at_any_step_of_the_first_write_leaves_nothing(tmp_path):
    target = tmp_path / "prompt"
    for at in range(1, 12):
        with pytest.MonkeyPatch.context() as patch:

            def fail(step: int, at: int = at) -> None:
                if step == at:
                    raise full_disk()

            Steps(patch, fail)
            with suppress(OSError):
                atomic.write(target, NEW, replace=False)
        assert os.listdir(tmp_path) in ([], ["prompt"]), f"left behind after step {at}"
        assert not target.exists() or atomic.read(target, NAMES) == NEW
        shutil.rmtree(target, ignore_errors=True)


def write_until_killed(target: str, at: int) -> None:
    """In a process of its own."""

    def kill(step: int) -> None:
        if step == at:
            os.kill(os.getpid(), signal.SIGKILL)

    Steps(pytest.MonkeyPatch(), kill)
    atomic.write(Path(target), NEW, replace=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_a_process_killed_at_any_step_leaves_a_whole_folder(target):
    total = steps_of_a_write(target)
    outcomes = []

    def killed(at: int) -> tuple[Path, int]:
        copy = target.parent.parent / f"{target.parent.name}-{at}" / "prompt"
        atomic.write(copy, OLD, replace=True)
        script = f"import test_atomic; test_atomic.write_until_killed({str(copy)!r}, {at})"
        return copy, subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent).returncode

    with ThreadPoolExecutor(2) as pool:
        for at, (copy, status) in enumerate(pool.map(killed, range(1, total + 1)), 1):
            assert status == -signal.SIGKILL
            found = atomic.read(copy, NAMES)
            assert found in (OLD, NEW), f"half a folder after step {at}"
            outcomes.append(found == NEW)
            check_the_next_write(copy)
    # Killed early, the old one stands; killed late, the new one; never the old one again after that.
    assert outcomes == sorted(outcomes)
    assert not outcomes[0]
    assert outcomes[-1]


def test_a_folder_replaced_while_it_is_read_is_read_anew(target, monkeypatch):
    read_bytes = Path.read_bytes

    def overtaken(path: Path) -> bytes:
        content = read_bytes(path)
        if content == OLD["one"]:
            atomic.write(target, NEW, replace=True)
        return content

    monkeypatch.setattr(Path, "read_bytes", overtaken)
    assert atomic.read(target, iter(NAMES)) == NEW


def test_readers_and_writers_at_once_see_whole_folders_only(target):
    through = threading.Event()

    def write(writer: int) -> None:
        for turn in range(6):
            content = f"{writer}, {turn}".encode()
            atomic.write(target, {"one": content, "two": content * 5000}, replace=True)

    def read(_: int) -> None:
        while not through.is_set():
            try:
                found = atomic.read(target, NAMES)
            except OSError as error:
                if "written again and again" not in str(error):
                    raise
            else:
                assert found == OLD or found["two"] == found["one"] * 5000

    with ThreadPoolExecutor(6) as pool:
        readers, writers = pool.map(read, range(2)), pool.map(write, range(4))
        try:
            assert list(writers) == [None] * 4
        finally:
            through.set()
        assert list(readers) == [None] * 2
    assert os.listdir(target.parent) == ["prompt"]


def test_writers_of_one_folder_wait_for_each_other(target, monkeypatch):
    inside: set[int] = set()
    fill = atomic._fill

    def watched(folder: Path, files: Any) -> None:
        inside.add(id(files))
        fill(folder, files)
        assert len(inside) == 1
        inside.clear()

    monkeypatch.setattr(atomic, "_fill", watched)
    with ThreadPoolExecutor(4) as pool:
        done = pool.map(lambda n: atomic.write(target, {"one": bytes([n])}, replace=True), range(8))
        assert list(done) == [None] * 8


def test_parents_are_made(tmp_path):
    atomic.write(tmp_path / "a" / "b" / "prompt", NEW, replace=False)
    assert atomic.read(tmp_path / "a" / "b" / "prompt", NAMES) == NEW
    assert os.listdir(tmp_path / "a" / "b") == ["prompt"]


def test_what_stands_there_is_not_replaced_unasked(target):
    with pytest.raises(OSError, match=r"not empty|exists"):
        atomic.write(target, NEW, replace=False)
    assert atomic.read(target, NAMES) == OLD
    assert os.listdir(target.parent) == ["prompt"]


def test_replacing_leaves_no_file_of_the_old_folder(target):
    atomic.write(target, {"one": b"alone"}, replace=True)
    assert os.listdir(target) == ["one"]


@pytest.mark.parametrize("replace", [False, True])
def test_an_empty_folder_is_always_replaced(tmp_path, replace):
    (tmp_path / "prompt").mkdir()
    atomic.write(tmp_path / "prompt", NEW, replace=replace)
    assert atomic.read(tmp_path / "prompt", NAMES) == NEW


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_is_no_folder_and_stays(tmp_path, replace):
    file = tmp_path / "prompt"
    file.write_text("mine")
    with pytest.raises(NotADirectoryError):
        atomic.write(file, NEW, replace=replace)
    with pytest.raises(NotADirectoryError):
        atomic.read(file, NAMES)
    assert file.read_text() == "mine"
    assert os.listdir(tmp_path) == ["prompt"]


def test_a_link_is_followed_and_stays_a_link(tmp_path, target):
    link = tmp_path / "link"
    link.symlink_to(target)
    atomic.write(link, NEW, replace=True)
    assert link.is_symlink()
    assert atomic.read(link, NAMES) == atomic.read(target, NAMES) == NEW
    assert atomic.standing(link) == target


def test_a_link_to_nothing_yet_is_written_where_it_leads(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "far" / "prompt")
    assert atomic.standing(tmp_path / "link") is None
    atomic.write(tmp_path / "link", NEW, replace=False)
    assert atomic.read(tmp_path / "far" / "prompt", NAMES) == NEW


def test_links_in_a_circle_are_an_error_of_the_disk(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(link)
    assert atomic.standing(link) is None
    with pytest.raises(FileNotFoundError):
        atomic.read(link, NAMES)
    with pytest.raises(OSError, match="link"):
        atomic.write(link, NEW, replace=True)
    assert os.listdir(tmp_path) == ["link"]


def test_files_that_are_not_there_are_left_out(target):
    assert atomic.read(target, ["one", "three"]) == {"one": OLD["one"]}


def test_no_folder_is_said(tmp_path):
    assert atomic.standing(tmp_path / "prompt") is None
    with pytest.raises(FileNotFoundError, match="no such folder"):
        atomic.read(tmp_path / "prompt", NAMES)


def test_a_folder_replaced_at_every_look_is_said(target, monkeypatch):
    looks = iter(range(1000))
    monkeypatch.setattr(atomic, "_identity", lambda folder: next(looks))
    with pytest.raises(OSError, match="written again and again"):
        atomic.read(target, NAMES)
