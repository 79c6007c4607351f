"""Prompt tuning: a few input embeddings, trained directly (Lester, Al-Rfou, Constant 2021, arXiv 2104.08691)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from softprompt.checks import check_whole
from softprompt.prompts.initialize import Init, check_init, initialize
from softprompt.prompts.method import Host, Method, Parametrization
from softprompt.prompts.prompt import VirtualTokens


@dataclass(frozen=True)
class PromptTuning(Method):
    """P vectors `[P, D]` at the input, nothing between them and the model (section 2 of the paper).

    Deviations: the paper trains with Adafactor at a constant 0.3 for 30,000 steps on T5; the defaults here are AdamW
    and far fewer steps. The slot may stand anywhere in the template, not in front alone.

    Attributes:
        tokens: P of each slot whose template does not say how many.
        init: "vocabulary" (embeddings of common tokens), "text", "labels" (label words first) or "random".
        text: the words to start from, for init="text".

    Raises:
        SettingsError: no tokens, an unknown init, or a text without init="text" or the other way round.
    """

    NAME: ClassVar[str] = "prompt-tuning"
    LEARNS: ClassVar[bool] = True
    LEARNING_RATE: ClassVar[float] = 5e-3

    tokens: int = 20
    init: Init = "vocabulary"
    text: str | None = None

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens)
        check_init(self.init, self.text)

    def slot_length(self) -> int:
        return self.tokens

    def build(self, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        return _Embeddings(initialize(self.init, tokens, host, generator, self.text))


class _Embeddings(Parametrization):
    """`[P, D]` parameters, used as they are."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(start)

    def forward(self, task: int = 0) -> VirtualTokens:
        return VirtualTokens(self.embeddings)

    def after_step(self) -> None:
        pass

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"prompt": [self.embeddings]}
