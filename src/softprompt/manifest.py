"""What `prompt.json` says of a prompt, and how strictly it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from softprompt import __version__
from softprompt.errors import ArtifactError
from softprompt.saved import SavedPrompt
from softprompt.text.task import Kind

FORMAT = 1
"""Version of the layout. A reader refuses a newer one."""


class Strict(BaseModel):
    """A part of a JSON file, nothing in it optional, unknown or of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


M = TypeVar("M", bound=Strict)


class MethodEntry(Strict):
    name: str
    settings: dict[str, Any]


class BackboneEntry(Strict):
    name: str
    fingerprint: str
    dtype: str


class TokenizerEntry(Strict):
    fingerprint: str


class TensorEntry(Strict):
    shape: list[int]
    dtype: str


class FileEntry(Strict):
    sha256: str
    tensors: dict[str, TensorEntry]


class Manifest(Strict):
    """`prompt.json`, as it is written."""

    format: int = Field(ge=1)
    softprompt_version: str
    task: Kind
    method: MethodEntry
    values: str
    template: str
    labels: dict[str, str] | None
    none: str = "none"
    target: str
    field: str | None = None
    max_length: int | None
    backbone: BackboneEntry
    tokenizer: TokenizerEntry
    files: dict[str, FileEntry]
    training: dict[str, Any]
    metrics: dict[str, float]


def manifest_of(prompt: SavedPrompt, files: Mapping[str, tuple[Mapping[str, Tensor], bytes]]) -> Manifest:
    """What is written of a prompt.

    Args:
        files: for each file of tensors these, and its contents.
    """
    task = prompt.task
    return Manifest(
        format=FORMAT,
        softprompt_version=__version__,
        task=task.kind,
        method=MethodEntry(name=prompt.method.NAME, settings=prompt.method.settings()),
        values=prompt.values.KIND,
        template=task.template.source,
        labels=dict(zip(task.labels, task.words, strict=True)) if task.labels else None,
        none=task.none,
        target=task.target,
        field=task.field,
        max_length=task.max_length,
        backbone=BackboneEntry(
            name=prompt.backbone_name,
            fingerprint=prompt.backbone_fingerprint,
            dtype=prompt.dtype,
        ),
        tokenizer=TokenizerEntry(fingerprint=prompt.tokenizer_fingerprint),
        files={
            name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), tensors=described(tensors))
            for name, (tensors, data) in files.items()
        },
        training=dict(prompt.training),
        metrics=dict(prompt.metrics),
    )


def as_json(manifest: BaseModel) -> bytes:
    return (json.dumps(manifest.model_dump(), ensure_ascii=False, indent=2) + "\n").encode()


def read_json(kind: type[M], content: bytes, where: Path) -> M:
    """A JSON file of ours.

    Args:
        where: how an error calls it.

    Raises:
        ArtifactError: it is damaged, of a newer format, or something in it is missing, unknown or of another type.
    """
    try:
        parsed = json.loads(content)
        version = parsed.get("format") if isinstance(parsed, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise ArtifactError(
                f"its format is {version}, this version reads up to {FORMAT}",
                where=str(where),
                instead="Install a newer softprompt.",
            )
        return kind.model_validate(parsed)
    except ValidationError as cause:
        first = cause.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ArtifactError(f"{place} is wrong: {first['msg']}", where=str(where)) from cause
    except ValueError as cause:
        raise ArtifactError(f"it is damaged: {cause}", where=str(where), instead="Restore or retrain it.") from cause


def described(tensors: Mapping[str, Tensor]) -> dict[str, TensorEntry]:
    """Shape and type of each tensor, by name."""
    return {n: TensorEntry(shape=list(t.shape), dtype=str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()}


def in_words(tensor: TensorEntry | None) -> str:
    """For people."""
    return "missing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
