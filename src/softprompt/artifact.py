"""A prompt on disk: a folder, written whole or not at all, and loaded strictly.

prompt.json            what it is: method, template, labels, backbone, tokenizer, training facts, metrics
prompt.safetensors     what serving needs
training.safetensors   what a training that begins here and `inspect` need: parameters, and where they started
README.md              a model card
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor

from softprompt import atomic
from softprompt.backbone.backbone import Backbone
from softprompt.card import card
from softprompt.checks import check_kind
from softprompt.errors import ArtifactError, OutputError, RequestError, SaveError
from softprompt.manifest import Manifest, as_json, described, in_words, manifest_of, read_json
from softprompt.prompts import method_named
from softprompt.prompts.head import Head
from softprompt.prompts.prompt import KINDS
from softprompt.saved import HEAD, SavedPrompt, TrainingState
from softprompt.text.task import Task

MANIFEST, PROMPT, TRAINING, CARD = "prompt.json", "prompt.safetensors", "training.safetensors", "README.md"
COLLECTION = "prompts.json"
"""What a folder of several prompts has instead of a manifest; see `softprompt.collection`."""
_START = "start."
_PARAMETERS = "parameters."


def check_output(path: str | Path, *, overwrite: bool) -> None:
    """See, before any work is begun, that a prompt can be saved there.

    Raises:
        OutputError: something stands there, and it is no prompt or may not be replaced.
    """
    path = Path(path)
    if not path.name or path.name in (".", ".."):
        raise OutputError("it has no name of its own", where=str(path), instead="Give a folder such as prompts/topic.")
    if (path.parent / COLLECTION).is_file():
        raise OutputError(
            f"{path.parent} holds prompts that belong together", where=str(path), instead="Give a folder elsewhere."
        )
    try:
        # As long as the longest name that may come to stand beside it.
        atomic.standing(path.with_name(f"{path.name}.last-good"))
        standing = atomic.standing(path)
    except OSError as cause:
        raise OutputError(
            f"no folder can stand there: {cause.strerror}", where=str(path), instead="Give another folder."
        ) from cause
    if standing is None:
        beside = next(p for p in Path(os.path.realpath(path)).parents if p.exists())
        if not beside.is_dir():
            raise OutputError(f"{beside} is a file", where=str(path), instead="Give another folder.")
        return
    if standing.is_dir() and not any(standing.iterdir()):
        return
    several = (standing / COLLECTION).is_file()
    if not standing.is_dir() or not (several or (standing / MANIFEST).is_file()):
        raise OutputError("something other than a prompt stands there", where=str(path), instead="Give another folder.")
    # Only what was written together is replaced together.
    strange = [p.name for p in standing.iterdir() if p.name not in (COLLECTION, CARD) and not _is_prompt(p)]
    if several and strange:
        raise OutputError(
            f"something other than prompts stands there: {', '.join(sorted(strange))}",
            where=str(path),
            instead="Move it away, or give another folder.",
        )
    if not overwrite:
        raise OutputError(
            f"{'prompts stand' if several else 'a prompt stands'} there",
            where=str(path),
            instead="Give another folder, or say overwrite (--overwrite).",
        )


def _is_prompt(folder: Path) -> bool:
    names = (MANIFEST, PROMPT, TRAINING, CARD)
    return (folder / MANIFEST).is_file() and all(p.name in names for p in folder.iterdir())


def save(prompt: SavedPrompt, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a prompt's folder, whole or not at all.

    Raises:
        OutputError: something stands there that may not be replaced.
        SaveError: it could not be written. What stood there before is whole.
    """
    path = Path(path)
    check_output(path, overwrite=overwrite)
    put(path, packed(prompt, Path(os.path.realpath(path)).name), overwrite=overwrite)
    return path


def packed(prompt: SavedPrompt, name: str) -> dict[str, bytes]:
    """The files of a prompt's folder.

    Args:
        name: of the folder.
    """
    contents = {PROMPT: prompt.tensors()}
    if prompt.state is not None:
        contents[TRAINING] = _joined(prompt.state)
    tensors = {name: write_tensors(content, {"format": "pt"}) for name, content in contents.items()}
    manifest = manifest_of(prompt, {name: (contents[name], data) for name, data in tensors.items()})
    return {MANIFEST: as_json(manifest), CARD: card(prompt, name).encode()} | tensors


def put(path: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write a folder, whole or not at all.

    Raises:
        SaveError: it could not be written. What stood there before is whole.
    """
    try:
        atomic.write(path, files, replace=overwrite)
    except OSError as cause:
        raise SaveError(
            f"the prompt could not be written: {cause.strerror or cause}",
            where=str(path),
            instead="What stood there before is whole. Free some space or give another folder, and try again.",
        ) from cause


def load(path: str | Path, backbone: Backbone | None = None, *, training: bool = False) -> SavedPrompt:
    """Read a prompt's folder and check all of it.

    Args:
        path: the folder.
        backbone: where given, the prompt must belong to it.
        training: whether to read what going on training needs, too.

    Raises:
        ArtifactError: there is no prompt, or a name, shape, dtype or checksum does not fit; the message says which.
        MismatchError: it belongs to another backbone or tokenizer.
    """
    check_kind("path", path, (str, Path), "Give a prompt's folder.")
    path = Path(path)
    saved = unpacked(fetch(path, [*contained(training=training), COLLECTION]), path, training=training)
    if backbone is not None:
        saved.check(backbone, str(path))
    return saved


def contained(*, training: bool) -> tuple[str, ...]:
    """The files of a prompt's folder that are read."""
    return (MANIFEST, PROMPT, TRAINING) if training else (MANIFEST, PROMPT)


def fetch(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The contents of a folder's files; one that is not there is left out.

    Raises:
        ArtifactError: there is no such folder, or it cannot be read.
    """
    try:
        return atomic.read(path, names)
    except FileNotFoundError:
        raise ArtifactError("there is no such folder", where=str(path), instead="Give a prompt's folder.") from None
    except (OSError, ValueError) as cause:  # ValueError: a path that no folder can have
        raise ArtifactError(
            f"it cannot be read: {cause}", where=str(path), instead="Give a prompt's folder."
        ) from cause


def unpacked(files: Mapping[str, bytes], path: Path, *, training: bool) -> SavedPrompt:
    """The inverse of `packed`, all of it checked.

    Args:
        path: how an error calls the folder.
        training: whether to read what going on training needs, too.

    Raises:
        ArtifactError: it is no prompt, or a name, shape, dtype or checksum does not fit; the message says which.
    """
    if MANIFEST not in files:
        several = "several prompts, each in a folder of its own" if COLLECTION in files else None
        raise ArtifactError(
            f"it holds {several}" if several else f"it has no {MANIFEST}",
            where=str(path),
            instead="Give the folder of one of them." if several else "Give a prompt's folder.",
        )
    manifest = read_json(Manifest, files[MANIFEST], path / MANIFEST)
    tensors = {name: _read_file(manifest, files, name, path) for name in contained(training=training)[1:]}
    try:
        saved = _restore(manifest, tensors)
    except (RequestError, TypeError) as cause:  # TypeError: a setting of another type
        raise ArtifactError(f"it does not hold together: {cause}", where=str(path / MANIFEST)) from cause
    _check_values(saved, manifest, path)
    return saved


def holds_training(path: str | Path) -> bool:
    """Whether what going on training needs stands in a prompt's folder; it may be left out where it is only served."""
    standing = atomic.standing(Path(path))
    return standing is not None and (standing / TRAINING).is_file()


def _joined(state: TrainingState) -> dict[str, Tensor]:
    named = {_PARAMETERS + k: v for k, v in state.parameters.items()} | {_START + k: v for k, v in state.start.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def _read_file(manifest: Manifest, files: Mapping[str, bytes], name: str, folder: Path) -> dict[str, Tensor]:
    where = str(folder / name)
    if name not in manifest.files or name not in files:
        raise ArtifactError("the file is missing", where=where, instead="Restore it, or train the prompt again.")
    expected, content = manifest.files[name], files[name]
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise ArtifactError(
            f"it is damaged: its {len(content)} bytes are not those that were written",
            where=where,
            instead="Restore it, or train the prompt again.",
        )
    try:
        tensors = read_tensors(content)
    except SafetensorError as cause:
        raise ArtifactError(f"it is no safetensors file: {cause}", where=where) from cause
    found = described(tensors)
    for tensor in sorted(expected.tensors.keys() | found.keys()):
        if found.get(tensor) != expected.tensors.get(tensor):
            raise ArtifactError(
                f"tensor {tensor!r} is {in_words(found.get(tensor))}, "
                f"{MANIFEST} says {in_words(expected.tensors.get(tensor))}",
                where=where,
            )
    return tensors


def _restore(manifest: Manifest, tensors: Mapping[str, dict[str, Tensor]]) -> SavedPrompt:
    task = Task(
        manifest.template,
        manifest.labels,
        kind=manifest.task,
        none=manifest.none if manifest.task == "multi-label" else None,
        target=manifest.target,
        field=manifest.field,
        max_length=manifest.max_length,
    )
    if any(slot.tokens is None for slot in task.template.slots):
        raise ArtifactError("a slot of the template has no length")
    stored = tensors[PROMPT]
    head = {name.removeprefix(HEAD): t for name, t in stored.items() if name.startswith(HEAD)}
    values = {name: t for name, t in stored.items() if not name.startswith(HEAD)}
    if bool(head) != bool(task.outputs):
        raise ArtifactError(
            f"a {task.kind} has {'a' if task.outputs else 'no'} head, the file {'one' if head else 'none'}"
        )
    if head and len(head.get("bias", ())) != task.outputs:
        raise ArtifactError(f"the head has {len(head.get('bias', ()))} outputs, the task {task.outputs}")
    if manifest.values not in KINDS:
        raise ArtifactError(f"values {manifest.values!r} are unknown; known are {', '.join(KINDS)}")
    return SavedPrompt(
        method=method_named(manifest.method.name, manifest.method.settings),
        task=task,
        values=KINDS[manifest.values].from_tensors(values),
        backbone_name=manifest.backbone.name,
        backbone_fingerprint=manifest.backbone.fingerprint,
        tokenizer_fingerprint=manifest.tokenizer.fingerprint,
        dtype=manifest.backbone.dtype,
        training=manifest.training,
        metrics=manifest.metrics,
        state=_split(tensors[TRAINING]) if TRAINING in tensors else None,
        head=Head.from_tensors(head) if head else None,
    )


def _split(tensors: Mapping[str, Tensor]) -> TrainingState:
    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    return TrainingState(under(_PARAMETERS), under(_START))


def _check_values(saved: SavedPrompt, manifest: Manifest, folder: Path) -> None:
    tensors = saved.tensors()
    expected = sum(slot.tokens or 0 for slot in saved.task.template.slots)
    if saved.values.tokens != expected:
        raise ArtifactError(
            f"it fills {saved.values.tokens} positions, the template's slots ask for {expected}",
            where=str(folder / PROMPT),
        )
    for name, tensor in tensors.items():
        stored = manifest.files[PROMPT].tensors[name]
        if stored.dtype != "float32":
            raise ArtifactError(f"tensor {name!r} is {in_words(stored)}, not float32", where=str(folder / PROMPT))
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"tensor {name!r} holds numbers that are not finite", where=str(folder / PROMPT))
    if saved.state is not None and described(saved.state.start) != described(tensors):
        raise ArtifactError("the values it started from do not match the prompt's", where=str(folder / TRAINING))
