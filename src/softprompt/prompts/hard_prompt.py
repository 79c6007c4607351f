"""Hard prompts: hand-written text, nothing learned. The baseline for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from softprompt.prompts.method import Host, Method, Parametrization
from softprompt.prompts.prompt import VirtualTokens


@dataclass(frozen=True)
class HardPrompt(Method):
    """The template's text, as it stands. Its template has no slot."""

    NAME: ClassVar[str] = "hard-prompt"
    LEARNS: ClassVar[bool] = False
    LEARNING_RATE: ClassVar[float] = 0.0

    def slot_length(self) -> int:
        return 0

    def build(self, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        return _Nothing(host.width)


class _Nothing(Parametrization):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, task: int = 0) -> VirtualTokens:
        return VirtualTokens(torch.zeros(0, self.width))

    def after_step(self) -> None:
        pass

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {}
