"""What is done in a cell of the grid: a small task is learned, saved, loaded and answered, or refused by name.

A check returns `GREEN`, or what is refused and what to use instead; it raises `AssertionError` where something that was
not refused does not hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

import naive
import reference
import tiny
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.collection import SavedPrompts, load_all
from softprompt.errors import RequestError
from softprompt.learn.ensemble import train_ensemble
from softprompt.learn.sources import Source, train_sources
from softprompt.learn.training import train
from softprompt.prompts import Method, MultitaskPromptTuning, PromptTuning
from softprompt.saved import SavedPrompt
from softprompt.text.task import OF_TOKENS, Kind, Task
from toys import LABELS, ROWS

T = TypeVar("T")

GREEN = "yes"
TOGETHER = {"batch_size": 4, "learning_rate": 0.05, "steps": 1, "progress": False}


def task_of(kind: Kind, family: str, opening: str = "Article: ") -> tuple[Task, list[dict[str, Any]]]:
    """A small task of a kind, as a family can answer it, and rows."""
    words = [row["text"].split() for row in ROWS]
    answers: dict[str, list[Any]] = {
        "token-classification": [[LABELS[len(word) % 2] for word in row] for row in words],
        "question-answering": [row[-1] for row in words],
        "multi-label": [[], ["sports"], LABELS, ["business"], [], LABELS],
    }
    rows = [
        {**row, "label": answer}
        for row, answer in zip(ROWS, answers.get(kind, [r["label"] for r in ROWS]), strict=False)
    ]
    encoder = family in tiny.ENCODERS and kind != "generation"
    place = "\nTopic: {mask}" if encoder else "\nTopic: {label}"
    template = opening + "{text}" + (place if kind in ("classification", "multi-label", "generation") else "")
    labels = None if kind in ("generation", "question-answering", "feature-extraction") else LABELS
    return Task(template, labels, kind=kind, none="won" if kind == "multi-label" else None), rows


def check(method: Method, family: str, kind: Kind) -> str:
    """A prompt of a method."""
    backbone = reference.backbone(family)
    task, rows = task_of(kind, family)
    learns = method.LEARNS or bool(task.outputs)
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, "learning_rate": 0.05} if learns else {}
    with tempfile.TemporaryDirectory() as folder, unchanged(family):
        path = Path(folder) / "prompt"
        made = unless_refused(lambda: train(backbone, task, method, rows, output=path, progress=False, **options))
        if isinstance(made, str):
            return made
        loaded = artifact.load(path, backbone, training=learns)
    if learns:
        # Where the encoder's states are read, a prefix of the decoder is never looked at.
        idle = family in tiny.ENCODER_DECODERS and kind in {*OF_TOKENS, "feature-extraction"}
        moved = moves(loaded)
        assert any(moved) if idle else all(moved) and moved
    check_answers(family, {"kept": made.prompt, "loaded": loaded}, rows[:4])
    return GREEN


@cache
def _sources(family: str, kind: Kind) -> SavedPrompts | str:
    """Two tasks that were trained together, each with a teacher, and loaded; or what was said."""
    backbone = reference.backbone(family)
    with tempfile.TemporaryDirectory() as folder, unchanged(family):
        path = Path(folder) / "sources"

        def together() -> object:
            tasks = {name: task_of(kind, family, opening) for name, opening in (("one", "Text: "), ("two", "So "))}
            sources = {name: Source(task, rows) for name, (task, rows) in tasks.items()}
            return train_sources(backbone, sources, MultitaskPromptTuning(tokens=3), output=path, **TOGETHER)

        refused = unless_refused(together)
        return refused if isinstance(refused, str) else load_all(path, backbone, training=True)


def check_sources(family: str, kind: Kind) -> str:
    """Prompts of two tasks that share a part."""
    made = _sources(family, kind)
    if isinstance(made, str):
        return made
    one, two = made.members.values()
    assert set(made.training["teachers"]) == {"one", "two"}
    assert all(moves(one)), "the first task's prompt"
    assert all(moves(two)), "the second task's prompt"
    assert torch.equal(_part(one, "shared"), _part(two, "shared"))
    assert not torch.equal(one.tensors()["embeddings"], two.tensors()["embeddings"])
    check_answers(family, made.members, task_of(kind, family)[1][:4])
    return GREEN


def check_from_sources(family: str, kind: Kind) -> str:
    """A prompt of a third task, which begins from those of `check_sources`."""
    backbone, sources = reference.backbone(family), _sources(family, kind)
    if isinstance(sources, str):
        return sources
    task, rows = task_of(kind, family)
    method = MultitaskPromptTuning(tokens=3)
    with tempfile.TemporaryDirectory() as folder, unchanged(family):
        path = Path(folder) / "prompt"
        made = unless_refused(lambda: train(backbone, task, method, rows, start=sources, output=path, **TOGETHER))
        if isinstance(made, str):
            return made
        loaded = artifact.load(path, backbone, training=True)
    assert all(moves(loaded))
    assert loaded.state is not None
    shared, left, right = (
        torch.stack([_part(member, name) for member in sources.members.values()]).mean(dim=0)
        for name in ("shared", "left.0", "right.0")
    )
    begun = shared * (left @ right)
    torch.testing.assert_close(loaded.state.start["embeddings"], begun)
    check_answers(family, {"kept": made.prompt, "loaded": loaded}, rows[:4])
    return GREEN


def _part(prompt: SavedPrompt, part: str) -> Tensor:
    """A parameter of a multitask prompt, beside a head or not."""
    assert prompt.state is not None
    return next(t for name, t in prompt.state.parameters.items() if name.endswith(part))


def check_ensemble(family: str, kind: Kind) -> str:
    """Two prompts of one task; where they do not answer together, each does by itself."""
    backbone = reference.backbone(family)
    task, rows = task_of(kind, family)
    with tempfile.TemporaryDirectory() as folder, unchanged(family):
        path = Path(folder) / "ensemble"

        def together() -> object:
            return train_ensemble(backbone, task, PromptTuning(tokens=3), rows, seeds=2, output=path, **TOGETHER)

        refused = unless_refused(together)
        if isinstance(refused, str):
            return refused
        made = load_all(path, backbone, training=True)
    one, two = made.members.values()
    assert all(moves(one)), "the first seed's prompt"
    assert all(moves(two)), "the second seed's prompt"
    assert not torch.equal(one.tensors()["embeddings"], two.tensors()["embeddings"])
    check_answers(family, made.members, rows[:4])
    engine = Engine(backbone)
    engine.add("ensemble", made)
    requests = [("ensemble", row) for row in rows[:4]]
    refused = unless_refused(lambda: engine.answer(requests))
    if isinstance(refused, str):
        return refused
    for name, prompt in made.members.items():
        engine.add(name, prompt)
    each = [engine.classify([(name, row) for row in rows[:4]]) for name in made.members]
    for by in ("vote", "mean"):
        for answer, *own in zip(engine.classify(requests, by=by), *each, strict=True):
            means = {label: sum(o.probabilities[label] for o in own) / 2 for label in answer.probabilities}
            torch.testing.assert_close(numbers(answer.probabilities), numbers(means), rtol=1e-3, atol=1e-5)
            if kind == "multi-label":
                mean = tuple(label for label, likely in means.items() if likely > 0.5)
                both = tuple(label for label in means if all(label in o.labels for o in own))
                assert answer.labels == (both if by == "vote" else mean)
            else:  # two agree, or the mean decides
                assert answer.label == max(means, key=means.__getitem__)
    return GREEN


def unless_refused(work: Callable[[], T]) -> T | str:
    """What comes of it, or what is said where it is refused."""
    try:
        return work()
    except RequestError as refused:
        if not refused.instead:
            raise AssertionError("what to do instead is not said") from refused
        return f"{refused.what}. {refused.instead}"


@contextmanager
def unchanged(family: str) -> Iterator[None]:
    """The model is the same afterwards, to the last bit."""
    model = reference.backbone(family).model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    yield
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def moves(prompt: SavedPrompt) -> list[bool]:
    """Of each tensor that is served, whether training moved it."""
    assert prompt.state is not None
    now, start = prompt.tensors(), dict(prompt.state.start)
    if prompt.task.kind == "question-answering":
        del start["head.bias"]  # one number for all the tokens decides between none of them
    return [bool((now[name] != begun).any()) for name, begun in start.items() if begun.numel()]


def check_answers(family: str, prompts: Mapping[str, SavedPrompt], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of different lengths in one batch, of several prompts, are answered as each alone, and as by the plain
    model."""
    engine = Engine(reference.backbone(family))
    for name, prompt in prompts.items():
        engine.add(name, prompt)
    requests = [(name, row) for name in prompts for row in rows]
    together = engine.answer(requests, max_new_tokens=3)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = engine.answer([request], max_new_tokens=3)
        assert_alike(answer, alone)
    # Padded, for another row is longer.
    name, row = requests[-len(rows)]
    plain = naive.answer(family, prompts[name], row)
    if plain is not None:
        assert_alike(together[-len(rows)], plain)


def assert_alike(these: Any, those: Any) -> None:
    """Two answers are the same, up to rounding."""
    assert type(these) is type(those)
    for name, one in vars(these).items():
        one, other = numbers(one), numbers(vars(those)[name])
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
        else:
            assert one == other, name


def numbers(value: Any) -> Any:
    """A tensor of them, where there is nothing else."""
    values = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else [value]
    return torch.tensor(values) if values and all(isinstance(v, float) for v in values) else value
