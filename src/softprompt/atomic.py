"""A folder of small files, some of them maybe in folders of its own, written whole or not at all.

The files go into `.NAME.partial` beside the target, are flushed to the disk and then renamed into place. A folder that
is replaced steps aside as `.NAME.replaced` first and is deleted last. Of these three names only `.NAME.partial` may
ever be half a folder, so whenever the work stops, even by `kill -9`, there is a whole folder to read: under its name
or, where the work stopped between the two renames, as `.NAME.replaced`. `read` looks there by itself, and the next
`write` tidies up.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl

    _POSIX = True
except ImportError:  # two writers of one folder are then the caller's business
    _POSIX = False

# A folder may be replaced while it is read; it is read again this often before that counts as an error.
_ATTEMPTS = 5


def write(target: Path, files: Mapping[str, bytes], *, replace: bool) -> None:
    """Write a folder. Of several writers that share a parent folder, one writes and the others wait.

    Args:
        target: the folder; parents are made as needed. A symbolic link is followed.
        files: contents by file name; `FOLDER/NAME` for one in a folder of its own.
        replace: whether a folder that stands there is replaced. An empty one always is.

    Raises:
        OSError: it could not be written, or stands there already. What stood there before is whole, as it is after
            Ctrl-C, unless that came after the second rename: then the new folder is.
    """
    target = _followed(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent):
        try:
            if target.exists() and not target.is_dir():
                raise _no_folder(target)
            _settle(target)
            _fill(_partial(target), files)
            if replace and target.exists():
                os.rename(target, _replaced(target))
            os.rename(_partial(target), target)
            with suppress(OSError):  # it is written; only a power cut could still undo it
                _flush_folder(target.parent)
        finally:
            try:
                _settle(target)
            except BaseException:  # Ctrl-C while tidying up
                _settle(target)
                raise


def standing(target: Path) -> Path | None:
    """Where the folder is: under its name, set aside by a writer that was killed, or nowhere (None).

    A folder inside one that was written is found there, too.
    """
    target = _followed(target)
    places = [target, _replaced(target)]
    if target.name and not target.parent.exists():
        places.append(_replaced(target.parent) / target.name)
    return next((place for place in places if place.exists()), None)


def read(target: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The contents of a folder's files, all of one writing; a file that is not there is left out.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: it is not a folder, cannot be read, or is being replaced faster than it can be read.
    """
    names = tuple(names)  # gone through once for each attempt
    for _ in range(_ATTEMPTS):
        folder = standing(target)
        if folder is None:
            continue  # between a writer's two renames, unless it stays so
        with suppress(FileNotFoundError):
            before = _identity(folder)
            files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
            if _identity(folder) == before:
                return files
    if standing(target) is None:
        raise FileNotFoundError(f"no such folder: {target}")
    raise OSError(f"{target} is being written again and again")


def _no_folder(place: Path) -> NotADirectoryError:
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))


def _followed(target: Path) -> Path:
    # Not `Path.resolve`: links that lead in a circle are a RuntimeError there, before Python 3.13.
    return Path(os.path.realpath(target))


def _identity(folder: Path) -> tuple[int, int, int]:
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise _no_folder(folder)
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _replaced(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _settle(target: Path) -> None:
    """From wherever a writer stopped, to one of its two ends: the new folder in place, or the old one back."""
    partial, replaced = _partial(target), _replaced(target)
    shutil.rmtree(partial, ignore_errors=True)
    if not replaced.exists():
        return
    if not target.exists():
        os.rename(replaced, target)
        return
    # Deleted under the name that may be half a folder. If that fails the work is done all the same.
    with suppress(OSError):
        os.rename(replaced, partial)
        shutil.rmtree(partial)


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    os.mkdir(folder)
    inner = {(folder / name).parent for name in files} - {folder}
    for place in inner:
        os.mkdir(place)
    for name, content in files.items():
        with open(folder / name, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for place in (*inner, folder):
        _flush_folder(place)


def _flush_folder(folder: Path) -> None:
    if not _POSIX:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one writer at a time; the lock goes with the process that holds it, and leaves no file."""
    if not _POSIX:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a network file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
