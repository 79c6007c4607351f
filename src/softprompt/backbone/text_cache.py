"""Keys and values of texts on disk: what one run has read, another run or task need not read.

One safetensors file a text, mapped into memory when it is used, so that more of them can be kept than memory holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from softprompt.backbone.context import Stretch
from softprompt.checks import check_whole
from softprompt.errors import OutputError, SettingsError

MAX_BYTES = 20 * 1024**3

DTYPES = {None: None, "bfloat16": torch.bfloat16}

FORMAT = 1
"""Counted on when what a text leaves is computed or written otherwise than before."""

# Where there is no more room, so much of it is freed at once that the folder is not gone through for every text.
_KEPT_SHARE = 0.9

# After so much was written the folder is gone through anyway: others may write into it.
_COUNTED_SHARE = 0.02

# A file that was begun so many seconds ago, and is not there yet, belongs to a process that is gone.
_ABANDONED = 3600.0

# Of the folder nothing else is ever touched: it may hold anything.
_OURS = re.compile(r"texts-[0-9a-f]{16}/([0-9a-f]{64}\.safetensors|\S+\.partial)")

_LOG = logging.getLogger("softprompt")


class TextCache:
    """A folder of what texts leave behind, shared by runs, tasks and processes.

    A text is known by all the weights of the model as they are loaded, by all the tokens before it and by its own, so a
    changed model, template or row is another text. A file that is damaged when it is opened counts as none. What was
    not used for longest goes first, but nothing that this process has used: where there is no room then, nothing more
    is kept.

    Attributes:
        folder: where the files are.
        max_bytes: how much they may take together.
        dtype: None to keep them in the model's dtype; "bfloat16" to take half as much of a float32 model's and be
            wrong in the third digit.
    """

    def __init__(self, folder: str | Path, *, max_bytes: int = MAX_BYTES, dtype: str | None = None) -> None:
        """
        Raises:
            SettingsError: `max_bytes` is no whole number above 0, or the dtype is unknown.
            OutputError: the folder cannot be written to.
        """
        check_whole("max_bytes", max_bytes)
        if dtype not in DTYPES:
            raise SettingsError(
                f"dtype is {dtype!r}", where="dtype", instead='Leave it out, or give "bfloat16" to keep texts in half.'
            )
        self.folder, self.max_bytes, self.dtype = Path(folder).expanduser(), max_bytes, dtype
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self.folder):
                pass
        except OSError as cause:
            raise OutputError(
                "it is a file, not a folder"
                if self.folder.is_file()
                else f"texts cannot be kept there: {cause.strerror or cause}",
                where=str(self.folder),
                instead="Give a folder that can be written to.",
            ) from cause
        self._taken: int | None = None
        self._counted = 0
        self._used: set[Path] = set()
        self._failed = False

    def of(self, *identity: str) -> Shelf:
        """The texts of one model.

        Args:
            identity: whatever decides what it makes of a text. Versions of torch and transformers are added.
        """
        known = [str(FORMAT), *identity, str(self.dtype), torch.__version__.split("+")[0], transformers.__version__]
        return Shelf(self, self.folder / f"texts-{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}")

    def keep(self, place: Path, content: bytes) -> bool:
        """Write a file, after making room for it; tells whether it is there now.

        A disk that is full costs a warning, never the run.
        """
        if self._failed or len(content) > self.max_bytes:
            return False
        taken = self._taken
        if taken is None or taken + len(content) > self.max_bytes or self._counted > _COUNTED_SHARE * self.max_bytes:
            taken = self._make_room(len(content))
            self._counted = 0
        self._taken = taken
        if taken + len(content) > self.max_bytes:
            return self._no_more(f"its {self.max_bytes:,} bytes are taken by texts that are in use")
        try:
            place.parent.mkdir(exist_ok=True)
            _write(place, content)
        except OSError as cause:
            return self._no_more(cause.strerror or str(cause))
        self._taken += len(content)
        self._counted += len(content)
        self._used.add(place)
        return True

    def use(self, place: Path) -> None:
        """Note that a file is used now."""
        self._used.add(place)
        with suppress(OSError):
            os.utime(place)

    def _no_more(self, why: str) -> bool:
        """Say once that nothing more is kept."""
        self._failed = True
        _LOG.warning("%s: no more texts are kept: %s", self.folder, why)
        return False

    def _make_room(self, wanted: int) -> int:
        """Remove what was not used for longest; returns the bytes that are left."""
        found = sorted(self._files(), key=lambda file: file[1])
        taken = sum(size for _, _, size in found)
        if taken + wanted <= self.max_bytes:
            return taken
        for place, _, size in found:
            if taken + wanted <= _KEPT_SHARE * self.max_bytes:
                break
            # What is mapped would go on taking its room on the disk, unseen.
            if place not in self._used:
                with suppress(OSError):
                    place.unlink()
                taken -= size
        return taken

    def _files(self) -> Iterable[tuple[Path, float, int]]:
        """Each file, when it was last used, and its size; another process may remove it meanwhile."""
        for place in self.folder.glob("texts-*/*"):
            if not _OURS.fullmatch(place.relative_to(self.folder).as_posix()):
                continue
            with suppress(OSError):
                status = place.stat()
                if place.suffix == ".partial" and status.st_mtime < time.time() - _ABANDONED:
                    place.unlink()
                else:
                    yield place, status.st_mtime, status.st_size


class Shelf:
    """The texts of one model in a `TextCache`.

    Attributes:
        folder: where they are.
    """

    def __init__(self, cache: TextCache, folder: Path) -> None:
        self._cache, self.folder = cache, folder

    def find(self, head: Sequence[int], text: Sequence[int]) -> Stretch | None:
        """What a text leaves behind the tokens of `head`; None where it is not there, or damaged."""
        place = self._place(head, text)
        try:
            with safe_open(place, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in sorted(file.keys(), key=_by_site)}
                whole = (file.metadata() or {}).get("crc32") == _checksum(tensors)
        except (OSError, SafetensorError, ValueError):
            return None
        if not whole or not tensors:
            return None
        self._cache.use(place)
        keys, values = (tuple(t for name, t in tensors.items() if name.startswith(kind)) for kind in ("key.", "value."))
        return Stretch(keys, values, mapped=True)

    def keep(self, head: Sequence[int], text: Sequence[int], stretch: Stretch) -> bool:
        """Keep what a text left; tells whether there was a place for it."""
        half = DTYPES[self._cache.dtype]
        tensors = {
            f"{kind}.{site}": tensor.detach().to("cpu", half if tensor.dtype == torch.float32 else None).contiguous()
            for kind, of_sites in (("key", stretch.keys), ("value", stretch.values))
            for site, tensor in enumerate(of_sites)
        }
        ordered = {name: tensors[name] for name in sorted(tensors, key=_by_site)}
        return self._cache.keep(self._place(head, text), save(tensors, {"crc32": _checksum(ordered)}))

    def _place(self, head: Sequence[int], text: Sequence[int]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps([head, text]).encode()).hexdigest()}.safetensors"


def _by_site(name: str) -> tuple[str, int]:
    kind, _, site = name.partition(".")
    return kind, int(site)


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Of their names, dtypes and shapes, too: a header may be damaged like any other part of a file."""
    found = 0
    for name, tensor in tensors.items():
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _write(place: Path, content: bytes) -> None:
    """Whole or not at all, whoever else writes it.

    Raises:
        OSError: it could not be written.
    """
    with NamedTemporaryFile(dir=place.parent, suffix=".partial", delete=False) as partial:
        try:
            partial.write(content)
            partial.close()
            os.replace(partial.name, place)
        except BaseException:
            Path(partial.name).unlink(missing_ok=True)
            raise


def as_cache(cache: Any) -> TextCache | None:
    """A cache as it is given: one, a folder for one, or None.

    Raises:
        SettingsError: it is something else.
        OutputError: the folder cannot be written to.
    """
    if cache is None or isinstance(cache, TextCache):
        return cache
    if isinstance(cache, (str, Path)):
        return TextCache(cache)
    raise SettingsError(f"cache is {type(cache).__name__} {cache!r}", where="cache", instead="Give a folder.")
