"""What `softprompt train` does where it is given several tasks, or several seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from softprompt.cli.common import show_cut, show_json, show_metrics, show_table
from softprompt.errors import SettingsError

if TYPE_CHECKING:
    from softprompt.backbone.backbone import Backbone
    from softprompt.collection import SavedPrompts
    from softprompt.prompts.method import Method
    from softprompt.text.task import Task

_NAME_THEM = "Give --data NAME=FILE for each task, or one --data FILE."


def names_sources(data: Sequence[str]) -> bool:
    """Whether `--data` names tasks: it stands there more than once, or as NAME=FILE and there is no such file."""
    return len(data) > 1 or ("=" in data[0] and not Path(data[0]).exists())


def one(values: Sequence[str] | None, option: str) -> str | None:
    """The value of an option where there is one task.

    Raises:
        SettingsError: it is given more than once.
    """
    if values is not None and len(values) > 1:
        raise SettingsError(f"it is given {len(values)} times for one task", where=option, instead=_NAME_THEM)
    return values[0] if values else None


def named(values: Sequence[str] | None, option: str, names: Sequence[str] | None = None) -> dict[str, str]:
    """NAME=VALUE, each name once.

    Args:
        names: those that are known; None where these are the names.

    Raises:
        SettingsError: one has no name, or one that is not known, or one that was there before.
    """
    found: dict[str, str] = {}
    for value in values or ():
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise SettingsError(f"{value!r} is no NAME=VALUE", where=option, instead=_NAME_THEM)
        if names is not None and name not in names:
            raise SettingsError(
                f"there is no --data {name}=...", where=option, instead=f"There are: {', '.join(names)}."
            )
        if name in found:
            raise SettingsError(f"{name!r} stands twice", where=option, instead="Give each once.")
        found[name] = rest
    return found


def for_each(values: Sequence[str] | None, option: str, names: Sequence[str]) -> dict[str, str]:
    """One value for all tasks, or NAME=VALUE for some of them: what has no task's name before '=' is for all.

    Raises:
        SettingsError: there are two values for all, or for one.
    """
    own = [value for value in values or () if value.partition("=")[0] in names and "=" in value]
    common = [value for value in values or () if value not in own]
    if len(common) > 1:
        raise SettingsError(
            f"two values are for all tasks: {common[0]!r} and {common[1]!r}",
            where=option,
            instead=f"Put a name before each: {names[0]}=...",
        )
    return dict.fromkeys(names, common[0]) | named(own, option) if common else named(own, option)


def refuse(options: Mapping[str, object], why: str) -> None:
    """
    Raises:
        SettingsError: one of these options is given.
    """
    for option, value in options.items():
        if value is not None and value is not False:
            raise SettingsError(why, where=option, instead="Leave it out.")


def read_seeds(text: str) -> int | list[int]:
    """
    Raises:
        SettingsError: it is neither a number nor a list of them.
    """
    try:
        return [int(part) for part in text.split(",")] if "," in text else int(text)
    except ValueError:
        raise SettingsError(
            f"{text!r} is no number and no list of them", where="--seeds", instead="Give 5, or 0,1,7."
        ) from None


@contextmanager
def resumable() -> Iterator[None]:
    """Ctrl-C inside says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command with --resume goes on with it") from None


def train_sources(
    method: Method,
    tasks: Mapping[str, Task],
    data: Mapping[str, str],
    eval_data: Mapping[str, str],
    teachers: Mapping[str, str],
    options: Mapping[str, Any],
    load: Callable[[], Backbone],
    common: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Train prompts of several tasks, by name; `load` brings the model when everything else is ready.

    Args:
        options: of `softprompt.train_sources` alone.
        common: its other keywords.
    """
    from softprompt import artifact
    from softprompt import data as files
    from softprompt.learn.sources import Source
    from softprompt.learn.sources import train_sources as run

    artifact.check_output(common["output"], overwrite=common["overwrite"])
    sources = {
        name: Source(
            task,
            files.read(data[name]),
            files.read(eval_data[name]) if name in eval_data else None,
            teachers.get(name),
        )
        for name, task in tasks.items()
    }
    backbone = load()
    with resumable():
        result = run(backbone, sources, method, **options, **common)
    _show(result.prompts, common["output"], f"prompts of {len(tasks)} tasks", as_json)


def train_ensemble(
    method: Method,
    task: Task,
    rows: Sequence[Mapping[str, Any]],
    eval_rows: Sequence[Mapping[str, Any]] | None,
    seeds: int | Sequence[int],
    load: Callable[[], Backbone],
    common: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Train prompts of several seeds; arguments as in `train_sources`."""
    from softprompt.learn.ensemble import check_seeds
    from softprompt.learn.ensemble import train_ensemble as run

    found = check_seeds(seeds, common["settings"])
    backbone = load()
    with resumable():
        result = run(backbone, task, method, rows, eval_rows, seeds=found, **common)
    _show(result.prompts, common["output"], f"an ensemble of {len(found)} prompts", as_json)


def _show(prompts: SavedPrompts, out: Path, what: str, as_json: bool) -> None:
    if as_json:
        show_json(as_object(prompts, out) | {"training": dict(prompts.training)})
        return
    show_members(prompts)
    show_metrics(prompts.metrics)
    for name, member in prompts.members.items() if prompts.kind == "sources" else [("", prompts.first)]:
        show_cut(member.training, name)
    tokens = prompts.first.values.tokens
    typer.echo(f"Saved to {out}: {what}, {tokens} virtual tokens each, {prompts.nbytes:,} bytes in all.")


def as_object(prompts: SavedPrompts, folder: Path) -> dict[str, Any]:
    """The prompts as JSON shows them."""
    return {
        "path": str(folder),
        "kind": prompts.kind,
        "bytes": prompts.nbytes,
        "metrics": dict(prompts.metrics),
        "prompts": {
            name: {"path": str(folder / name), "bytes": member.nbytes, "metrics": dict(member.metrics)}
            for name, member in prompts.members.items()
        },
    }


def show_members(prompts: SavedPrompts) -> None:
    """A table with a row for each prompt."""
    members = prompts.members
    metrics = list(dict.fromkeys(name for member in members.values() for name in member.metrics))
    rows = [
        (name, *(f"{member.metrics[m]:.4g}" if m in member.metrics else "" for m in metrics))
        for name, member in members.items()
    ]
    show_table(["prompt", *metrics], rows, numbers=metrics)
