"""What every method is: settings, and the parameters that they are turned into for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softprompt.errors import TemplateError
from softprompt.prompts.prompt import VirtualTokens
from softprompt.text.task import Task


@dataclass(frozen=True)
class Vocabulary:
    """What a method may know of the model whose prompt it makes.

    Attributes:
        size: V, entries of the embedding table.
        width: D, the width of an embedding.
        special: ids that stand for no text.
        encode: token ids of a text.
        embed: `[n]` int64 ids to `[n, D]` float32 embeddings, as the model receives them.
        labels: the task's label words as token ids; empty for generation.
    """

    size: int
    width: int
    special: frozenset[int]
    encode: Callable[[str], list[int]]
    embed: Callable[[Tensor], Tensor]
    labels: tuple[tuple[int, ...], ...] = ()


class Parametrization(nn.Module, ABC):
    """The parameters of a method, for as long as they are trained."""

    @abstractmethod
    def forward(self, task: int = 0) -> VirtualTokens:
        """The prompt as it stands, with gradients."""

    @abstractmethod
    def after_step(self) -> None:
        """Called after each optimizer update: projections, bounds."""

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by name of group; a learning rate may be given for each."""


@dataclass(frozen=True)
class Method(ABC):
    """The settings of a method.

    Attributes:
        NAME: how files and the command line call it.
        LEARNS: whether there is anything to train.
        LEARNING_RATE: what AdamW trains it with unless told otherwise.
    """

    NAME: ClassVar[str]
    LEARNS: ClassVar[bool]
    LEARNING_RATE: ClassVar[float]

    @abstractmethod
    def slot_length(self) -> int:
        """Virtual tokens in a slot whose template does not say how many; 0 where there can be no slot."""

    @abstractmethod
    def build(self, tokens: int, vocabulary: Vocabulary, generator: torch.Generator) -> Parametrization:
        """Parameters at their starting point.

        Args:
            tokens: P, virtual tokens of the whole template.
            vocabulary: the model's.
            generator: the source of whatever is random.
        """

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """What may be set."""
        return tuple(f.name for f in fields(cls))

    def settings(self) -> dict[str, Any]:
        """The settings by name, as JSON can hold them."""
        return {name: getattr(self, name) for name in self.setting_names()}


def count(parameters: Sequence[nn.Parameter]) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in parameters)


def resolve_task(task: Task, method: Method) -> Task:
    """The task with a slot in front where it has none, and the method's length in slots that do not say theirs.

    Raises:
        TemplateError: there is a slot, but the method fills none.
    """
    if not method.LEARNS:
        if task.template.slots:
            raise TemplateError(
                f"a {method.NAME} fills no slot",
                where=f"template {task.template.source!r}",
                instead="Take {soft} out, or use a method that learns, such as prompt-tuning.",
            )
        return task
    return task.with_template(task.template.with_slot_in_front().with_lengths(method.slot_length()))
