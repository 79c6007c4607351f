"""A trained head: what is learned behind the model, beside what is learned in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from softprompt.errors import ArtifactError
from softprompt.prompts.method import Asked, Parametrization
from softprompt.prompts.prompt import Values

_STD = 0.02
_NAMES = ("weight", "bias")


class Head(nn.Module):
    """A linear layer over a last hidden state, float32 (as in P-tuning v2, arXiv 2110.07602, section 3.2).

    Attributes:
        weight: `[C, D]`.
        bias: `[C]`.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    @classmethod
    def random(cls, width: int, outputs: int, generator: torch.Generator) -> Self:
        """Small weights, no bias."""
        return cls(_STD * torch.randn(outputs, width, generator=generator), torch.zeros(outputs))

    def forward(self, states: Tensor) -> Tensor:
        """`[..., D] -> [..., C]` float32."""
        return nn.functional.linear(states.float(), self.weight.to(states.device), self.bias.to(states.device))

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name: float32, on the CPU, in memory of its own."""
        return {name: getattr(self, name).detach().to("cpu", torch.float32).clone() for name in _NAMES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`.

        Raises:
            ArtifactError: a name, a shape or a type is not what it must be.
        """
        if set(tensors) != set(_NAMES):
            raise ArtifactError(f"a head holds {sorted(tensors)}, not {sorted(_NAMES)}")
        weight, bias = (tensors[name] for name in _NAMES)
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ArtifactError(f"a head has shapes {list(weight.shape)} and {list(bias.shape)}, not [C, D] and [C]")
        if not (weight.is_floating_point() and bias.is_floating_point()):
            raise ArtifactError(f"a head holds {weight.dtype} and {bias.dtype}, not floating point numbers")
        return cls(weight, bias).requires_grad_(False)


class Headed(Parametrization):
    """A prompt and a head that are trained together."""

    def __init__(self, prompt: Parametrization, head: Head) -> None:
        super().__init__()
        self.prompt, self.head = prompt, head

    def forward(self, task: int = 0) -> Values:
        return self.prompt(task)

    def asked(self, task: int = 0) -> tuple[Asked, ...]:
        return self.prompt.asked(task)

    def head_for(self, task: int = 0) -> Head:
        return self.head

    def after_step(self) -> None:
        self.prompt.after_step()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return self.prompt.groups() | {"head": list(self.head.parameters())}
