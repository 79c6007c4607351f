"""Prompts on disk that belong together: a folder with a folder for each, written whole or not at all.

prompts.json   what holds them together, their names in order, and the checksum of each one's manifest
README.md      a card
NAME/          a prompt, as `softprompt.artifact` writes it: it can be loaded and served by itself
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from softprompt import __version__, artifact, atomic
from softprompt.artifact import CARD, COLLECTION, MANIFEST
from softprompt.backbone.backbone import Backbone
from softprompt.card import collection_card
from softprompt.checks import check_kind, shown
from softprompt.errors import ArtifactError, SettingsError
from softprompt.manifest import FORMAT, Strict, as_json, read_json
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task

CollectionKind = Literal["sources", "ensemble"]
"""Prompts of several tasks that were trained with something in common, or several prompts of one task."""

_NAME = re.compile(r"\w(?:[\w.-]*[\w-])?")
_LONGEST_NAME = 100
_ATTEMPTS = 5


@dataclass(frozen=True, eq=False)
class SavedPrompts:
    """Several prompts for one backbone.

    Attributes:
        kind: what holds them together.
        members: the prompts by name.
        training: facts of the training run.
        metrics: of all of them together, on the evaluation rows.

    Raises:
        ArtifactError: fewer than two prompts, or they are not for one backbone, or an ensemble's for one task.
    """

    kind: CollectionKind
    members: Mapping[str, SavedPrompt]
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise ArtifactError(f"there is no {self.kind} of {len(self.members)} prompts; it takes two or more")
        first = next(iter(self.members))
        for name, other in self.members.items():
            for what, mine, theirs in (
                ("backbone", self.first.backbone_fingerprint, other.backbone_fingerprint),
                ("tokenizer", self.first.tokenizer_fingerprint, other.tokenizer_fingerprint),
                *(_answers(self.task, other.task) if self.kind == "ensemble" else ()),
            ):
                if mine != theirs:
                    raise ArtifactError(
                        f"the prompts of one {self.kind} do not have one {what}: "
                        f"{shown(theirs)} in {name!r}, {shown(mine)} in {first!r}",
                        instead="Put together prompts of one model, with the same labels in the same order.",
                    )

    @property
    def first(self) -> SavedPrompt:
        """For what they all have in common."""
        return next(iter(self.members.values()))

    @property
    def task(self) -> Task:
        """Of an ensemble."""
        return self.first.task

    @property
    def backbone_name(self) -> str:
        return self.first.backbone_name

    @property
    def dtype(self) -> str:
        return self.first.dtype

    @property
    def quantization(self) -> str | None:
        return self.first.quantization

    @property
    def nbytes(self) -> int:
        """Size of what serving needs, in bytes."""
        return sum(member.nbytes for member in self.members.values())

    def check_ensemble(self, name: str) -> None:
        """See that the prompts answer together.

        Args:
            name: how an error calls them.

        Raises:
            SettingsError: each has a task of its own.
        """
        if self.kind != "ensemble":
            members = ", ".join(f"{name}/{member}" for member in self.members)
            raise SettingsError(
                f"it holds the prompts of {len(self.members)} tasks", where=name, instead=f"Give one: {members}."
            )

    def check(self, backbone: Backbone, name: str) -> None:
        """See that the prompts belong to a backbone; as `SavedPrompt.check`."""
        for member, prompt in self.members.items():
            prompt.check(backbone, f"{name}/{member}")

    def note_quantization(self, backbone: Backbone, name: str) -> bool:
        """As `SavedPrompt.note_quantization`, of the first for which it holds."""
        return any(prompt.note_quantization(backbone, f"{name}/{member}") for member, prompt in self.members.items())


def ensemble(
    prompts: Mapping[str, str | Path | SavedPrompt] | Sequence[str | Path | SavedPrompt],
) -> SavedPrompts:
    """Prompts of one task that were each trained by itself, to be asked as one: they vote on labels.

    `Engine.add` and `evaluate` take it, and `save_all` writes it. Methods and templates may differ; the backbone, the
    kind of task and its labels may not.

    Args:
        prompts: two or more saved prompts, or the folders of such; by name, or named after their folders.

    Raises:
        SettingsError: there are fewer than two.
        ArtifactError: a folder cannot be read, or one prompt does not go with the first; the message names it.
    """
    if isinstance(prompts, (str, Path, SavedPrompt)):
        prompts = [prompts]
    check_kind("prompts", prompts, (Mapping, Sequence), "Give a list of prompts or of their folders.")
    if len(prompts) < 2:
        raise SettingsError("an ensemble takes two prompts or more", where="prompts", instead="Give a list of them.")
    for prompt in prompts.values() if isinstance(prompts, Mapping) else prompts:
        check_kind("a member", prompt, (str, Path, SavedPrompt), "Give a prompt, or its folder.")
    named = prompts if isinstance(prompts, Mapping) else _named_after_folders(prompts)
    same = [os.path.realpath(p) if isinstance(p, (str, Path)) else id(p) for p in named.values()]
    twice = next((name for name, one in zip(named, same, strict=True) if same.count(one) > 1), None)
    if twice is not None:
        raise SettingsError(f"{twice!r} stands there twice", where="prompts", instead="Give each prompt once.")
    members = {name: p if isinstance(p, SavedPrompt) else artifact.load(p) for name, p in named.items()}
    return SavedPrompts("ensemble", members)


def _named_after_folders(prompts: Sequence[str | Path | SavedPrompt]) -> dict[str, str | Path | SavedPrompt]:
    """By the names of their folders; of several that are called alike, all but the first are numbered."""
    found: dict[str, str | Path | SavedPrompt] = {}
    for prompt in prompts:
        own = "prompt" if isinstance(prompt, SavedPrompt) else Path(os.path.realpath(prompt)).name
        names = (own, *(f"{own}-{number}" for number in range(2, len(prompts) + 1)))
        found[next(name for name in names if name not in found)] = prompt
    return found


def _answers(mine: Task, theirs: Task) -> Iterator[tuple[str, object, object]]:
    """What tasks that are answered together have in common, by what it is called."""
    for what, name in (
        ("kind of task", "kind"),
        ("list of labels", "labels"),
        ("list of label words", "words"),
        ("word for no label", "none"),
        ("target", "target"),
        ("field", "field"),
    ):
        yield what, getattr(mine, name), getattr(theirs, name)


class _Member(Strict):
    sha256: str


class CollectionManifest(Strict):
    """`prompts.json`, as it is written."""

    format: int = Field(ge=1)
    softprompt_version: str
    kind: CollectionKind
    members: dict[str, _Member]
    training: dict[str, Any]
    metrics: dict[str, float]


def check_names(names: Sequence[str], what: str) -> None:
    """See that names can be those of folders, side by side.

    Args:
        what: what is called so.

    Raises:
        SettingsError: one cannot, or two are the same where large and small letters are.
    """
    for name in names:
        if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME or name.lower() in (COLLECTION, CARD.lower()):
            raise SettingsError(
                f"{name[: _LONGEST_NAME + 1]!r} cannot be the name of a folder",
                where=what,
                instead="Use letters, digits, '-', '_' and, inside, '.'.",
            )
    folded = [name.casefold() for name in names]
    twice = next((name for name in names if folded.count(name.casefold()) > 1), None)
    if twice is not None:
        raise SettingsError(f"{twice!r} stands twice", where=what, instead="Each needs a name of its own.")


def save_all(prompts: SavedPrompts, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a folder of prompts, whole or not at all.

    Raises:
        SettingsError: a member has a name that no folder can have.
        OutputError: something stands there that may not be replaced.
        SaveError: it could not be written. What stood there before is whole.
    """
    path = Path(path)
    check_names(list(prompts.members), "prompts")
    artifact.check_output(path, overwrite=overwrite)
    packed = {name: artifact.packed(prompt, name) for name, prompt in prompts.members.items()}
    manifest = CollectionManifest(
        format=FORMAT,
        softprompt_version=__version__,
        kind=prompts.kind,
        members={name: _Member(sha256=_digest(files[MANIFEST])) for name, files in packed.items()},
        training=dict(prompts.training),
        metrics=dict(prompts.metrics),
    )
    own = {
        COLLECTION: as_json(manifest),
        CARD: collection_card(prompts, Path(os.path.realpath(path)).name).encode(),
    }
    inner = {f"{name}/{file}": content for name, files in packed.items() for file, content in files.items()}
    artifact.put(path, own | inner, overwrite=overwrite)
    return path


def load_all(path: str | Path, backbone: Backbone | None = None, *, training: bool = False) -> SavedPrompts:
    """Read a folder of prompts and check all of it.

    Args:
        path: the folder, as `train_sources` or `train_ensemble` writes it.
        backbone: where given, the prompts must belong to it.
        training: whether to read what going on training needs, too.

    Raises:
        ArtifactError: there are no such prompts, or a member is missing, exchanged or damaged; the message says which.
        MismatchError: they belong to another backbone or tokenizer.
    """
    check_kind("path", path, (str, Path), "Give the folder.")
    path = Path(path)
    for _ in range(_ATTEMPTS):
        manifest = _manifest(artifact.fetch(path, [COLLECTION, MANIFEST]), path)
        inner = [f"{name}/{file}" for name in manifest.members for file in artifact.contained(training=training)]
        files = artifact.fetch(path, [COLLECTION, *inner])
        if _manifest(files, path) == manifest:
            break  # and not replaced between the two
    else:
        raise ArtifactError("it is being written again and again", where=str(path), instead="Try again.")
    members = {}
    for name, expected in manifest.members.items():
        own = {file.removeprefix(f"{name}/"): content for file, content in files.items() if file.startswith(f"{name}/")}
        if MANIFEST not in own:
            raise ArtifactError("this member is missing", where=str(path / name), instead="Restore or retrain all.")
        members[name] = artifact.unpacked(own, path / name, training=training)
        if _digest(own[MANIFEST]) != expected.sha256:
            raise ArtifactError(
                f"it is not the prompt that was written here, according to {COLLECTION}",
                where=str(path / name / MANIFEST),
                instead="Restore it, or train all of them again.",
            )
    try:
        prompts = SavedPrompts(manifest.kind, members, manifest.training, manifest.metrics)
    except ArtifactError as cause:
        raise ArtifactError(f"it does not hold together: {cause}", where=str(path / COLLECTION)) from cause
    if backbone is not None:
        prompts.check(backbone, str(path))
    return prompts


def load_any(
    path: str | Path, backbone: Backbone | None = None, *, training: bool = False
) -> SavedPrompt | SavedPrompts:
    """A prompt, or a folder of several; arguments and errors are those of `load_all`."""
    return (load_all if holds_several(path) else artifact.load)(path, backbone, training=training)


def holds_several(path: str | Path) -> bool:
    """Whether a folder holds prompts that belong together."""
    standing = atomic.standing(Path(path))
    return standing is not None and (standing / COLLECTION).is_file()


def stamped(path: str | Path) -> str:
    """What a folder holds, in short: another string where anything in it was written anew."""
    files = artifact.fetch(Path(path), [COLLECTION, MANIFEST])
    return _digest(b"".join(files[name] for name in sorted(files)))


def _manifest(files: Mapping[str, bytes], path: Path) -> CollectionManifest:
    if COLLECTION not in files:
        one = MANIFEST in files
        raise ArtifactError(
            "it holds one prompt" if one else f"it has no {COLLECTION}",
            where=str(path),
            instead="Load it with load." if one else "Give a folder that train_sources or train_ensemble wrote.",
        )
    manifest = read_json(CollectionManifest, files[COLLECTION], path / COLLECTION)
    try:
        check_names(list(manifest.members), "members")
    except SettingsError as cause:  # nothing outside the folder is read
        raise ArtifactError(f"it does not hold together: {cause}", where=str(path / COLLECTION)) from cause
    return manifest


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
