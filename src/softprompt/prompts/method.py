"""What every method is: settings, and the parameters that they are turned into for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softprompt.prompts.prompt import VirtualTokens


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

    def settings(self) -> dict[str, Any]:
        """The settings by name, as JSON can hold them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def count(parameters: Sequence[nn.Parameter]) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in parameters)
