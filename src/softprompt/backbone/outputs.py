"""What is read of a forward pass: the states of the positions that are asked about, and what the head makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Outputs:
    """
    Attributes:
        states: `[B, S, D]` last hidden states at the positions asked about, as the head receives them.
        logits: `[B, S, V]`; None where there is no language modelling head, or it was not asked.
    """

    states: Tensor
    logits: Tensor | None


class Gathered:
    """The states that a pass left behind."""

    def __init__(self, at: Tensor | None) -> None:
        self.at = at
        self.states: Tensor | None = None

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """A forward hook: puts the states asked about in the place of all."""
        if self.states is not None:  # a body inside a body has had its turn
            return None
        states = output.last_hidden_state
        if self.at is not None:
            states = states.gather(1, self.at[..., None].expand(-1, -1, states.shape[-1]))
            output.last_hidden_state = states
        self.states = states
        return output


def bodies(model: PreTrainedModel) -> list[nn.Module]:
    """The modules whose output the head takes: which of them a model calls, its architecture says."""
    if getattr(model.config, "is_encoder_decoder", False):
        return [model.get_decoder()]
    return list({id(m): m for m in (model.base_model, model.base_model.get_decoder())}.values())


@contextmanager
def gathering(modules: list[nn.Module], at: Tensor | None) -> Iterator[Gathered]:
    """Whatever is run meanwhile hands only the states at `at` `[B, S]` on to its head; None for all.

    A model computes its head for every position, or for the same ones in all rows; the head is the largest matrix it
    has. The hooks are gone when the pass is over.
    """
    gathered = Gathered(at)
    hooks = [module.register_forward_hook(gathered) for module in modules]
    try:
        yield gathered
    finally:
        for hook in hooks:
            hook.remove()
