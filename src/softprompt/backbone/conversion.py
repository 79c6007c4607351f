"""From a GGUF file to a folder that every loader reads: done once, kept in a cache."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from softprompt.errors import SourceError

VERSION = 1
"""Part of the cache's key: raised whenever a conversion would come out differently."""

_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def cache_folder() -> Path:
    """`$SOFTPROMPT_CACHE`, else `~/.cache/softprompt`."""
    return Path(os.environ.get("SOFTPROMPT_CACHE") or "~/.cache/softprompt").expanduser()


def convert(gguf: Path, name: str) -> Path:
    """Return a folder with the weights (float32), config and tokenizer of a GGUF file, converting it if need be.

    The folder is written whole or not at all. Of several processes that ask at once, one converts and the others wait.

    Args:
        gguf: the file.
        name: what the model is called in messages and in the cache.

    Raises:
        SourceError: the file cannot be read, or the cache cannot be written to.
    """
    from filelock import FileLock

    cache = cache_folder()
    try:
        folder = cache / f"{name}-{_digest(gguf)[:16]}-v{VERSION}"
        if _is_whole(folder):
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{folder.name}.lock"):
            if not _is_whole(folder):
                _convert(gguf, name, folder)
    except Exception as cause:  # a full disk, a damaged file, a key or shape the reader does not know
        raise SourceError(
            f"{gguf} could not be converted into {cache}: {cause}",
            where=name,
            instead="SOFTPROMPT_CACHE can name another folder; it needs 600 MB.",
        ) from cause
    return folder


def _convert(gguf: Path, name: str, folder: Path) -> None:
    """Only under the lock: then what is half-written was left by a process that was killed, and is nobody's."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        partial.mkdir()
        with _status(f"Converting {gguf.name} for {name} (once; kept in {folder.parent})"):
            _write(gguf, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_whole(folder: Path) -> bool:
    return all((folder / file).is_file() for file in _FILES)


def _write(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with _quiet():
        # Unpacked always: kept in its blocks, the model would depend on which kernels are installed.
        read = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        # A model read from GGUF refuses to be saved, so a plain one is given its weights. They stay float32: the
        # values of the blocks (scale times code plus offset) are no bfloat16 numbers.
        config = copy.deepcopy(read.config)
        config.__dict__.pop("quantization_config", None)  # there in some versions of transformers only
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(config)
        plain.load_state_dict(read.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = read.generation_config
        plain.save_pretrained(folder)

        tokenizer = AutoTokenizer.from_pretrained(**where)
        tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer(gguf) or tokenizer.backend_tokenizer.pre_tokenizer
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(folder)


def _pre_tokenizer(gguf: Path):
    """How text is split before the merges, where transformers' GGUF reader has it wrong; None where it is right."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is None or field.contents() != "smollm":
        return None
    # The reader leaves out that digits are split off first; blanks before a number would come out as other tokens.
    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the readers' warnings, log lines and progress bars off the terminal; what matters is raised."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


def _status(message: str) -> contextlib.AbstractContextManager[object]:
    """A spinner on a terminal, a plain line elsewhere."""
    from rich.console import Console

    # `file` is bound here, so that the spinner goes on turning while stderr is put aside.
    console = Console(file=sys.stderr)
    if console.is_terminal:
        return console.status(message)
    console.print(message, soft_wrap=True, highlight=False)
    return contextlib.nullcontext()
