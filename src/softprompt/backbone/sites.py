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
        name: the attention module's name in the model, with the number of its call where it is called more than once.
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


class _Discovery(dict[int, list[int]]):
    """Numbers the calls of attention modules in the order in which they come."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[int] = []

    def __getitem__(self, module: int) -> list[int]:
        calls = self.setdefault(module, [])
        calls.append(len(self.modules))
        self.modules.append(module)
        return calls


@torch.no_grad()
def probe(model: PreTrainedModel) -> tuple[tuple[Site, ...], dict[int, tuple[int, ...]]]:
    """The attention sites in calling order, and the indices of each attention module's calls, by its identity.

    An encoder-decoder has three kinds of them: of the encoder, of the decoder, and those where it looks at the encoder.
    Both are empty where attention does not go through transformers' registry.
    """
    found, record = _Discovery(), Record()
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    reading = Reading(found, torch.arange(2, device=model.device)[None], record=record)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    try:
        model(**inputs, **{KEYWORD: reading})
    except TypeError:
        # A model that takes no unknown keyword cannot be reached; anything else it raises is its own.
        return (), {}
    names = {id(module): name for name, module in model.named_modules()}
    calls = {module: tuple(numbers) for module, numbers in found.items()}
    sites = tuple(
        Site(
            name=names[module] + (f".{calls[module].index(site)}" if len(calls[module]) > 1 else ""),
            heads=record.keys[site].shape[1],
            key_width=record.keys[site].shape[3],
            value_width=record.values[site].shape[3],
            window=record.windows[site],
        )
        for site, module in enumerate(found.modules)
    )
    return sites, calls
