"""The layers of a backbone compiled by torch."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.backbone import attention
from softprompt.errors import SettingsError


def compile_layers(model: PreTrainedModel) -> None:
    """Have each layer compiled when it is first run, for lengths of any size. Worth it for long runs: it takes minutes.

    Layer by layer, because what stands around them (masks, positions, the head) differs from batch to batch.

    Raises:
        SettingsError: the model has no layers that could be told.
    """
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise SettingsError(
            "its layers cannot be compiled one by one",
            where=type(model).__name__,
            instead="Load it with compile=False.",
        )
    # What a pass reads and leaves behind changes from layer to layer: compiled, each would be another attention.
    attention.register(torch.compiler.disable(attention.attend))
    for layer in layers:
        layer.compile(dynamic=True)
