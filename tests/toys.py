"""Small tasks that a prompt before a tiny model can learn, and prompts that were not learned at all."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load, save
from torch import Tensor
from transformers import TrainerCallback

import reference
import tiny
from softprompt import artifact
from softprompt.backbone.backbone import Backbone
from softprompt.learn.ensemble import EnsembleResult, train_ensemble
from softprompt.learn.sources import Source, SourcesResult, train_sources
from softprompt.learn.trainer import Learner
from softprompt.learn.training import Result, train
from softprompt.prompts import Method, MultitaskPromptTuning, PromptTuning
from softprompt.prompts.head import Head
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.maker import example_maker
from softprompt.saved import SavedPrompt, TrainingState
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Kind, Task

FRONT = "{soft:4}Article: {text}\nTopic: {label}"
BEHIND = "Article: {text}{soft:4}\nTopic: {label}"
LABELS = ["sports", "business"]
TOPICS = Task(FRONT, LABELS)
"""Classification; both label words have first tokens of their own."""

WRITING = Task(FRONT)
"""Generation; the answer is the label, written out and ended."""

ROWS = [
    {"text": "the team won", "label": "sports"},
    {"text": "the market fell", "label": "business"},
    {"text": "the team won the match", "label": "sports"},
    {"text": "fell", "label": "business"},
    {"text": "the match", "label": "sports"},
    {"text": "the market, and the market", "label": "business"},
]

TONES = Task("{text}{soft:4} is {label}", {"good": "won", "bad": "fell"})
"""Another task, its slot elsewhere and its label words others."""

TONE_ROWS = [
    {"text": "the team won", "label": "good"},
    {"text": "the market fell, and fell", "label": "bad"},
    {"text": "x", "label": "good"},
    {"text": "the match", "label": "bad"},
]


def sources(*, measured: bool = True, **more: Source) -> dict[str, Source]:
    """Two tasks of unequal size, and more if they are given."""
    topic = Source(TOPICS, ROWS, ROWS[:4] if measured else None)
    tone = Source(TONES, TONE_ROWS, TONE_ROWS[:3] if measured else None)
    return {"topic": topic, "tone": tone, **more}


def learn_together(
    backbone: Backbone | None = None,
    tasks: Mapping[str, Source] | None = None,
    method: Method | None = None,
    **options: Any,
) -> SourcesResult:
    """A few steps of several tasks on a tiny Llama, unless said otherwise."""
    usual = {"steps": 6, "batch_size": 4, "learning_rate": 0.1, "progress": False}
    method = method or MultitaskPromptTuning(tokens=4)
    return train_sources(backbone or tiny.backbone(), tasks or sources(), method, **usual | options)


def learn_ensemble(
    backbone: Backbone | None = None,
    task: Task = TOPICS,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    eval_rows: Sequence[Mapping[str, Any]] | None = ROWS,
    method: Method | None = None,
    **options: Any,
) -> EnsembleResult:
    """A few steps of three seeds on a tiny Llama, unless said otherwise."""
    usual = {"steps": 6, "batch_size": 4, "learning_rate": 0.1, "progress": False, "seeds": 3}
    return train_ensemble(
        backbone or tiny.backbone(), task, method or PromptTuning(tokens=4), rows, eval_rows, **usual | options
    )


KINDS = get_args(Kind)
SPOKEN = KINDS[:3]
HEADED = KINDS[3:6]


def task_of(kind: str, backbone: Backbone, *, soft: str = "{soft:4}") -> Task:
    """A task of a kind as a backbone answers it; an encoder generates nothing."""
    template = soft + "Article: {text}"
    if kind in SPOKEN:
        template += "\nTopic: " + ("{mask}" if backbone.kind == "encoder" else "{label}")
    labels = LABELS if "classification" in kind or kind == "multi-label" else None
    return Task(template, labels, kind=kind, none="yes" if kind == "multi-label" else None)


def answered(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `ROWS` with an answer of a kind."""
    words = row["text"].split()
    answers = {
        "multi-label": [label for label in LABELS if label == row["label"] or "won" in words],
        "token-classification": [LABELS[len(word) % 2] for word in words],
        "question-answering": words[-1],
    }
    return {**row, "label": answers.get(kind, row["label"])}


def rows_of(kind: str) -> list[dict[str, Any]]:
    """Rows with answers of a kind."""
    return [answered(kind, row) for row in ROWS]


def kinds_of(family: str) -> tuple[str, ...]:
    """The kinds of task that a family answers."""
    return KINDS[1:] if family in tiny.ENCODERS else KINDS


def pairs(*families: str) -> list[tuple[str, str]]:
    """Each family with each kind of task that it answers."""
    return [(family, kind) for family in families for kind in kinds_of(family)]


def head(backbone: Backbone, task: Task, *, seed: int = 0) -> Head | None:
    """A random head for a task that has one."""
    generator = torch.Generator().manual_seed(seed)
    width = backbone.state_size
    weight = torch.randn(task.outputs, width, generator=generator) / width**0.5
    return Head(weight, torch.randn(task.outputs, generator=generator)).requires_grad_(False) if task.outputs else None


def learn(
    backbone: Backbone | None = None,
    task: Task = TOPICS,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    eval_rows: Sequence[Mapping[str, Any]] | None = None,
    method: Method | None = None,
    **options: Any,
) -> Result:
    """A few steps on a tiny Llama, unless said otherwise."""
    method = method or PromptTuning(tokens=4)
    usual = {"steps": 6, "batch_size": 4, "learning_rate": 0.1} if method.LEARNS else {}
    return train(backbone or tiny.backbone(), task, method, rows, eval_rows, **{"progress": False} | usual | options)


def prompt(
    backbone: Backbone, task: Task = TOPICS, *, seed: int = 0, method: Method | None = None, trained: bool = False
) -> SavedPrompt:
    """A random prompt; with `trained` it says that it started from others."""
    generator = torch.Generator().manual_seed(seed)
    virtual = example_maker(backbone, task).virtual
    values, start = (
        torch.randn(virtual, backbone.hidden_size, generator=generator) * float(backbone.embeddings.float().std())
        for _ in range(2)
    )
    return SavedPrompt(
        method=method or PromptTuning(tokens=4),
        task=task,
        values=VirtualTokens(values),
        backbone_name=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        tokenizer_fingerprint=backbone.tokenizer_fingerprint,
        dtype="float32",
        training={"steps": 3},
        metrics={"accuracy": 0.5},
        state=TrainingState({"embeddings": values}, {"embeddings": start}) if trained else None,
        head=head(backbone, task, seed=seed),
    )


def plain_probabilities(family: str, asked: SavedPrompt, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """`[rows, labels]`, by a model that was never taken in, the prompt's vectors written among its embeddings."""
    model, maker = reference.plain(family), ExampleMaker(asked.task, reference.backbone(family).tokenizer)
    first = maker.verbalizer.by_first_token
    words = [word[:1] if first else word for word in maker.verbalizer.words]
    table = []
    for row in rows:
        example = maker(row, answered=False)
        logs = []
        for word in words:
            logits = reference.logits(model, replace(example, target=word), asked.values.embeddings)
            logs.append(logits.log_softmax(-1)[range(len(word)), word].sum())
        table.append(torch.stack(logs).softmax(-1))
    return torch.stack(table)


def png_size(content: bytes) -> tuple[int, int]:
    """Width and height of a whole PNG file."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit(folder: Path, change) -> None:
    """Change the manifest as JSON."""
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    change(manifest)
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))


def replace_tensors(folder: Path, file: str, change) -> None:
    """Change a file's tensors and have the manifest agree with its new bytes and shapes."""
    tensors = load((folder / file).read_bytes())
    change(tensors)
    content = save(tensors, {"format": "pt"})
    (folder / file).write_bytes(content)
    described = {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in tensors.items()}
    record = {"sha256": hashlib.sha256(content).hexdigest(), "tensors": described}
    edit(folder, lambda m: m["files"].update({file: record}))


def at(event: str, step: int, action: Callable[[Learner], Any]) -> TrainerCallback:
    """Does something when an event of the Trainer comes at a step; `on_step_begin` comes before its step is counted."""

    def act(self: TrainerCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step:
            action(kwargs["model"])

    return type("At", (TrainerCallback,), {event: act})()


def interrupt(model: Learner) -> None:
    """Ctrl-C, for `at`."""
    raise KeyboardInterrupt


def decided_backbone() -> Backbone:
    """A tiny Llama whose words can become certain: the random one's logits are too close together for a loss near 0."""
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return Backbone(model, tiny.tokenizer(), "decided")
