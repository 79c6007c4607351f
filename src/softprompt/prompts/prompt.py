"""The values of a prompt: what a method yields and what is served, whatever it was learned by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softprompt.errors import ArtifactError


@dataclass(frozen=True)
class VirtualTokens:
    """P vectors that stand where words would stand.

    Attributes:
        embeddings: `[P, D]` floating point, on the scale of the model's embedded words.
    """

    embeddings: Tensor

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or not self.embeddings.is_floating_point():
            raise ArtifactError(
                f"virtual tokens are {self.embeddings.dtype} of shape {list(self.embeddings.shape)}, "
                "not floating point of shape [P, D]"
            )

    @property
    def tokens(self) -> int:
        """P, how many virtual tokens there are."""
        return self.embeddings.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {"embeddings": self.embeddings.detach().to("cpu", torch.float32).contiguous()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> VirtualTokens:
        """The inverse of `tensors`."""
        return cls(tensors["embeddings"])
