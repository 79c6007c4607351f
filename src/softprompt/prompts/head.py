"""A trained head: what is learned behind the model, beside what is learned in front of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from softprompt.errors import ArtifactError
from softprompt.prompts.method import Asked, Parametrization
from softprompt.prompts.prompt import Values

_STD = 0.02
_NAMES = ("weight", "bias")
_PROMPT, _HEAD = "prompt.", "head."


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

    def log_probabilities(self, states: Tensor) -> Tensor:
        """Of each output among all: `[..., D] -> [..., C]` float32."""
        return self(states).log_softmax(dim=-1)

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


def without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a saved state holds of the prompt alone, as it is called where there is no head."""
    return {name.removeprefix(_PROMPT): t for name, t in state.items() if not name.startswith(_HEAD)}


class Headed(Parametrization):
    """Prompts and heads that are trained together, a head for each task that has one.

    Args:
        prompt: the prompts.
        heads: for each task its head, or None.
        rate: how many times faster than the prompts the heads are trained.
    """

    def __init__(self, prompt: Parametrization, heads: Sequence[Head | None], rate: float = 1.0) -> None:
        super().__init__()
        self.prompt, self.rate = prompt, rate
        self.heads = nn.ModuleDict({str(k): head for k, head in enumerate(heads) if head is not None})

    def forward(self, task: int = 0) -> Values:
        return self.prompt(task)

    def asked(self, task: int = 0) -> tuple[Asked, ...]:
        return self.prompt.asked(task)

    def head_for(self, task: int = 0) -> Head | None:
        if str(task) not in self.heads:
            return None
        head = self.heads[str(task)]
        assert isinstance(head, Head), "it was given such"
        return head

    def after_step(self) -> None:
        self.prompt.after_step()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return self.prompt.groups() | {"head": list(self.heads.parameters())}

    def learned_by(self, task: int = 0) -> list[nn.Parameter]:
        head = self.head_for(task)
        return self.prompt.learned_by(task) + ([] if head is None else list(head.parameters()))

    def rates(self) -> dict[str, float]:
        return self.prompt.rates() | {"head": self.rate}

    def state_of(self, task: int = 0) -> dict[str, Tensor]:
        prompt = {_PROMPT + name: t for name, t in self.prompt.state_of(task).items()}
        head = self.head_for(task)
        return prompt | ({} if head is None else {_HEAD + name: t for name, t in head.state_dict().items()})

    def begin_from(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Take saved prompts for the start, and the head of a single one where it has one; else heads are new."""
        self.prompt.begin_from([without_head(state) for state in states])
        head = self.head_for()
        found = {name.removeprefix(_HEAD): t for name, t in states[0].items() if name.startswith(_HEAD)}
        if len(states) == 1 and head is not None and found and found["weight"].shape == head.weight.shape:
            head.load_state_dict(found)
