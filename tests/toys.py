"""Small tasks that a prompt before a tiny model can learn, and prompts that were not learned at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import tiny
from softprompt.artifact import SavedPrompt, TrainingState
from softprompt.backbone.backbone import Backbone
from softprompt.learn.training import Result, train
from softprompt.prompts import Method, PromptTuning
from softprompt.prompts.prompt import VirtualTokens
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task

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


def learn(
    backbone: Backbone | None = None,
    task: Task = TOPICS,
    rows: Sequence[Mapping[str, Any]] = ROWS,
    eval_rows: Sequence[Mapping[str, Any]] | None = None,
    method: Method | None = None,
    **options: Any,
) -> Result:
    """A few steps on a tiny Llama, unless said otherwise."""
    settings = {"steps": 6, "batch_size": 4, "learning_rate": 0.1, "progress": False} | options
    return train(backbone or tiny.backbone(), task, method or PromptTuning(tokens=4), rows, eval_rows, **settings)


def prompt(
    backbone: Backbone, task: Task = TOPICS, *, seed: int = 0, method: Method | None = None, trained: bool = False
) -> SavedPrompt:
    """A random prompt; with `trained` it says that it started from others."""
    generator = torch.Generator().manual_seed(seed)
    virtual = ExampleMaker(task, backbone.tokenizer).virtual
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
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by name."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@dataclass
class At(TrainerCallback):
    """Does something when an event of the Trainer comes at a step; the step of `on_step_begin` has not been counted."""

    event: str
    step: int
    action: Any

    def __getattribute__(self, name: str) -> Any:
        wanted = object.__getattribute__(self, "__dict__").get("event")
        return self._act if name == wanted else object.__getattribute__(self, name)

    def _act(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action(kwargs["model"])


def interrupt(model: object) -> None:
    """Ctrl-C, for `At`."""
    raise KeyboardInterrupt


def decided_backbone() -> Backbone:
    """A tiny Llama whose words can become certain: the random one's logits are too close together for a loss near 0."""
    model = tiny.model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return Backbone(model, tiny.tokenizer(), "decided")
