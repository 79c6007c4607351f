"""Gradient checkpointing of a frozen model: layers are recomputed in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.errors import SettingsError


def prepare(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """Have the layers recomputed whenever they are in training mode; returns them.

    Not by the model's own method: that asks for gradients of the frozen embeddings as well.

    Raises:
        SettingsError: none of its layers can be recomputed.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise SettingsError(
            "its layers cannot be recomputed in the backward pass",
            where=type(model).__name__,
            instead="Load it with gradient_checkpointing=False.",
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_recompute, layer)
    return layers


@contextmanager
def recomputing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """transformers checkpoints a layer in training mode only, and takes its cache away while it does."""
    for layer in layers:
        layer.training = torch.is_grad_enabled()
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def _recompute(layer: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Run a layer under a checkpoint, in eval mode: some apply dropout of their own."""

    def run(*args: Any) -> Any:
        training, layer.training = layer.training, False
        try:
            return function(*args)
        finally:
            layer.training = training

    return checkpoint(run, *args, use_reentrant=False)
