"""What a model does, tried on a few random tokens when it is taken in: nothing about an architecture is assumed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.backbone.context import Context
from softprompt.errors import SourceError

if TYPE_CHECKING:
    from softprompt.backbone.backbone import Backbone

_LENGTH, _PADDING = 9, 3


@torch.no_grad()
def is_causal(backbone: Backbone) -> bool:
    """Is a position's state the same whatever stands behind it?"""
    row, other = _rows(backbone)
    mask = torch.ones(2, _LENGTH, dtype=torch.bool, device=backbone.device)
    states = _states(backbone, torch.stack([row, other]), mask)
    # Two rows of one shape are rounded alike, so little is forgiven: some encoders make little of one token.
    return not _differ(backbone, states[0, :-1], states[1, :-1], 1e-3 if backbone.dtype == torch.float32 else 0.03)


@torch.no_grad()
def check_padding(backbone: Backbone) -> None:
    """
    Raises:
        SourceError: a row is answered differently when it is padded, on the side where batches of its kind are; every
            batch rests on that.
    """
    row, _ = _rows(backbone)
    mask = torch.ones(2, _LENGTH, dtype=torch.bool, device=backbone.device)
    if backbone.pads_in_front:
        mask[1, :_PADDING] = False
        padded, (alone, beside) = row.roll(_PADDING), (slice(0, -_PADDING), slice(_PADDING, None))
    else:
        # Alone it is shorter, so that nothing else is different.
        mask[:, -_PADDING:] = False
        row = row[:-_PADDING]
        padded, (alone, beside) = torch.cat([row, row[:_PADDING]]), (slice(0, None), slice(0, -_PADDING))
    one = _states(backbone, row[None], mask[:1, : len(row)] if not backbone.pads_in_front else mask[:1])
    two = _states(backbone, padded[None], mask[1:])
    if _differ(backbone, one[0, alone], two[0, beside]):
        raise SourceError(
            "it answers differently when its row is padded, so rows cannot share a batch",
            where=f"{backbone.name} ({type(backbone.model).__name__})",
            instead="Use a model that heeds its attention mask, such as smollm2.",
        )


@torch.enable_grad()
def check_gradient(backbone: Backbone) -> None:
    """
    Raises:
        SourceError: no gradient comes through it: some kernels for quantised weights give none, and say nothing.
    """
    inputs = backbone.embed(_rows(backbone)[0][None]).detach().requires_grad_()
    mask = torch.ones(1, _LENGTH, dtype=torch.bool, device=backbone.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The last state alone: what it owes to the others has come through attention, not along the residual stream.
        backbone.outputs(inputs, mask, head=False).states[:, -1].float().square().sum().backward()
    if inputs.grad is None or not bool((inputs.grad.abs().sum(dim=-1) > 0).all()):
        raise SourceError(
            "no gradient comes through its weights, so nothing could be learned before it",
            where=f"{backbone.name} ({type(backbone.model).__name__})",
            instead="Quantize it another way, or load it as it is.",
        )


@torch.no_grad()
def state_size(backbone: Backbone) -> int:
    """How wide is a last hidden state? A configuration tells the width of the layers, which some models reduce."""
    mask = torch.ones(1, _LENGTH, dtype=torch.bool, device=backbone.device)
    return _states(backbone, _rows(backbone)[0][None], mask).shape[-1]


def marks_segments(backbone: Backbone) -> bool:
    """Is an encoder told which tokens stand behind the first separator, by its tokenizer's own account?"""
    if backbone.kind != "encoder" or (getattr(backbone.model.config, "type_vocab_size", None) or 0) < 2:
        return False
    return 1 in backbone.tokenizer("a", "a").get("token_type_ids", ())


@torch.no_grad()
def narrows(backbone: Backbone) -> bool:
    """Are states the same where the last layer is computed for them alone?"""
    if backbone.kind == "encoder-decoder":
        return False
    inputs = backbone.embed(_rows(backbone)[0][None]).expand(2, -1, -1)
    mask = torch.ones(2, _LENGTH, dtype=torch.bool, device=backbone.device)
    at = torch.tensor([[0, _LENGTH - 1], [_PADDING, _PADDING]], device=backbone.device)
    whole = backbone.outputs(inputs, mask, head=False).states.float()
    narrow = backbone.outputs(inputs, mask, at=at, head=False).states.float()
    return not _differ(backbone, narrow, whole.gather(1, at[..., None].expand_as(narrow)))


@torch.no_grad()
def lowers(backbone: Backbone) -> bool:
    """Does reading a context equal having it in the sequence?"""
    if not backbone.sites or _shifts_with_length(backbone.model, backbone.sites):
        return False
    inputs = backbone.embed(_rows(backbone)[0][None])
    mask = torch.ones(1, _LENGTH, dtype=torch.bool, device=backbone.device)
    whole = backbone.logits(inputs, mask, keep=4).float()

    def differs(before: int) -> bool:
        context = Context.of([backbone.read(inputs[:, :before], mask[:, :before])])
        rest = backbone.logits(inputs[:, before:], mask[:, before:], context, keep=4).float()
        # Half precision itself is off by a sixth on random tokens; what is wrong is off by as much as there is.
        forgiven = None if backbone.dtype == torch.float32 else 0.4
        return _differ(backbone, whole[:, -rest.shape[1] :], rest, forgiven)

    # A long context is attended to in another way than a short one.
    return not differs(_LENGTH // 2 + 1) and not differs(_LENGTH - 1)


def _rows(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Random tokens, and the same with another last one."""
    size = backbone.embeddings.shape[0]
    row = torch.randint(size, (_LENGTH,), generator=torch.Generator().manual_seed(0))
    other = row.clone()
    other[-1] = (row[-1] + size // 2) % size
    return row.to(backbone.device), other.to(backbone.device)


def _states(backbone: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
    """`[B, T, D]` of the encoder or of the only stack there is."""
    return backbone.outputs(backbone.embed(ids), mask, head=False).states.float()


def _differ(backbone: Backbone, these: Tensor, those: Tensor, tolerance: float | None = None) -> bool:
    """Whether states `[..., T, D]` differ by more than rounding, at the worst position; NaN does not count."""
    error = (these - those).square().mean(dim=-1).sqrt().max()
    return bool(error > (tolerance or _tolerance(backbone)) * these.std().clamp_min(1e-6))


def _tolerance(backbone: Backbone) -> float:
    return 1e-3 if backbone.dtype == torch.float32 else 0.1


def _shifts_with_length(model: PreTrainedModel, sites: Sequence[Any]) -> bool:
    """Do keys depend on how long the sequence becomes, or on where a chunk begins?"""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    ropes = [rope, *(r for r in rope.values() if isinstance(r, dict))]
    if any(r.get("rope_type") in ("dynamic", "longrope") for r in ropes) or "chunked_attention" in kinds:
        return True
    # A window that is not handed to attention cannot be applied to the context.
    return "sliding_attention" in kinds and all(site.window is None for site in sites)
