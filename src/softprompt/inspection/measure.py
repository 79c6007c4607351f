"""What a soft prompt has become: each virtual token beside the words it is nearest to and the place it started from.
Of a prompt inside the attention, see `softprompt.inspection.prefix`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.backbone.backbone import Backbone
from softprompt.checks import check_whole
from softprompt.inspection.prefix import PrefixInspection, inspect_prefix
from softprompt.saved import SavedPrompt


@dataclass(frozen=True)
class Neighbour:
    """A vocabulary token and how near it is.

    Attributes:
        token: as the tokenizer decodes it.
        cosine: similarity of direction, from -1 to 1.
    """

    token: str
    cosine: float


@dataclass(frozen=True)
class VirtualToken:
    """One virtual token.

    Attributes:
        index: from 0, over all slots.
        slot: the slot it stands in, from 0.
        norm: its length (L2).
        start_norm: its length before training; None where the start is not known.
        drift: its distance (L2) from where it started; None where that is not known.
        nearest: the nearest vocabulary tokens by cosine, nearest first.
    """

    index: int
    slot: int
    norm: float
    start_norm: float | None
    drift: float | None
    nearest: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Inspection:
    """A prompt's virtual tokens, and how long the vocabulary's embeddings are for comparison.

    Attributes:
        tokens: P virtual tokens.
        vocabulary_norms: 5th, 50th and 95th percentile of the norms of the model's embeddings.
    """

    tokens: tuple[VirtualToken, ...]
    vocabulary_norms: tuple[float, float, float]


@torch.no_grad()
def inspect(prompt: SavedPrompt, backbone: Backbone, *, nearest: int = 3) -> Inspection | PrefixInspection:
    """Compare a prompt with the vocabulary and with its start.

    Args:
        prompt: read with `training=True` if drift is wanted.
        backbone: the model it belongs to.
        nearest: how many neighbours are named, of virtual tokens at the input.

    Raises:
        MismatchError: the prompt belongs to another backbone.
        SettingsError: `nearest` below 1.
    """
    check_whole("nearest", nearest)
    prompt.check(backbone, "prompt")
    if prompt.values.at_input is None:
        return inspect_prefix(prompt, list(backbone.site_shapes))
    values = prompt.values.at_input.float()
    start = prompt.state.start["embeddings"].float() if prompt.state else None
    vocabulary = backbone.embed(torch.arange(backbone.vocabulary_size, device=backbone.device)).float().cpu()
    percentiles = torch.quantile(vocabulary.norm(dim=-1), torch.tensor([0.05, 0.5, 0.95])).tolist()
    slots = [number for number, slot in enumerate(prompt.task.template.slots) for _ in range(slot.tokens or 0)]
    neighbours = _nearest(values, vocabulary, nearest, backbone)
    tokens = tuple(
        VirtualToken(
            index=i,
            slot=slots[i],
            norm=float(values[i].norm()),
            start_norm=None if start is None else float(start[i].norm()),
            drift=None if start is None else float((values[i] - start[i]).norm()),
            nearest=neighbours[i],
        )
        for i in range(values.shape[0])
    )
    return Inspection(tokens, (percentiles[0], percentiles[1], percentiles[2]))


def _nearest(values: Tensor, vocabulary: Tensor, count: int, backbone: Backbone) -> Sequence[tuple[Neighbour, ...]]:
    if values.shape[0] == 0:
        return []
    cosines = F.normalize(values, dim=-1) @ F.normalize(vocabulary, dim=-1).T
    best = cosines.topk(min(count, vocabulary.shape[0]), dim=-1)
    return [
        tuple(Neighbour(backbone.tokenizer.decode([i]), c) for i, c in zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
