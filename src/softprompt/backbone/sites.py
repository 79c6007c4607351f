"""Find out, by one tiny forward pass, where a model attends. There is no table of architectures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from softprompt.backbone.attention import KEYWORD, Reading, Record


@dataclass(frozen=True)
class Site:
    """One place where a model attends.

    Attributes:
        name: the attention module's name in the model.
        heads: H, key and value heads.
        key_width: E of the keys.
        value_width: E of the values.
        window: from this distance on a key is forgotten; None for never.
    """

    name: str
    heads: int
    key_width: int
    value_width: int
    window: int | None


class _Discovery(dict[int, int]):
    """Numbers attention modules in the order in which they are first asked for."""

    def __missing__(self, module: int) -> int:
        self[module] = len(self)
        return self[module]


@torch.no_grad()
def probe(model: PreTrainedModel) -> tuple[tuple[Site, ...], dict[int, int]]:
    """The attention sites in calling order, and the index of each attention module by identity.

    Both are empty where attention does not go through transformers' registry, or where one module attends more than
    once in a pass (its calls could not be told apart).
    """
    found, record = _Discovery(), Record()
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    reading = Reading(found, torch.arange(2, device=model.device)[None], record=record)
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **{KEYWORD: reading})
    except TypeError:
        # A model that takes no unknown keyword cannot be reached; anything else it raises is its own.
        return (), {}
    if not found or record.calls != len(found):
        return (), {}
    names = {id(module): name for name, module in model.named_modules()}
    sites = tuple(
        Site(
            name=names[module],
            heads=record.keys[site].shape[1],
            key_width=record.keys[site].shape[3],
            value_width=record.values[site].shape[3],
            window=record.windows[site],
        )
        for module, site in found.items()
    )
    return sites, dict(found)
