"""What prompts are measured against: the plain model, one row at a time, the prompt written into the row's sequence.

Nothing here uses the package's plan, contexts, batches or losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

import tiny
from softprompt.backbone.backbone import Backbone
from softprompt.prompts.prompt import Prefix, VirtualTokens
from softprompt.run.forward import Filling
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.task import Task

TEMPLATES = {
    "front": "{soft:3}Article: {text}\nTopic: {label}",
    "behind": "Article: {text}{soft:3}{label}",
    "middle": "Article: {soft:4} the {text}\nTopic: {label}",
    "two": "{soft:2}Article: {text}{soft:3}\nTopic: {label}",
    "headed": "Article: {text}{soft:2}\nTopic: {label}",
    "no-field": "Topic:{soft:3} the answer: {label}",
    "no-slot": "Article: {text}\nTopic: {label}",
    "slot-alone": "{soft:3}{label}",
    "text-alone": "{text}{label}",
}

# Of different lengths, one twice, one a single token.
ROWS = (
    {"text": "the team won the match", "label": "sports"},
    {"text": "x", "label": "business fell"},
    {"text": "the market fell, and fell, and fell; the team won", "label": "no"},
    {"text": "the team won the match", "label": "yes yes"},
)


@dataclass(frozen=True)
class Case:
    """Examples of some templates, each with a prompt of its own, and for each example its prompt's index."""

    examples: tuple[Example, ...]
    prompts: tuple[Tensor, ...]
    which: tuple[int, ...]

    @property
    def fillings(self) -> list[Filling]:
        return [Filling(VirtualTokens(p)) for p in self.prompts]

    def leaves(self) -> Case:
        """The same with prompts that take gradients of their own."""
        return Case(self.examples, tuple(p.detach().clone().requires_grad_() for p in self.prompts), self.which)

    def alone(self) -> list[tuple[Example, Tensor]]:
        """Each example with its prompt."""
        return [(example, self.prompts[k]) for example, k in zip(self.examples, self.which, strict=True)]


def case(names: Sequence[str], backbone: Backbone, *, rows: Sequence[dict[str, str]] = ROWS, seed: int = 0) -> Case:
    """The rows in every one of the templates, templates alternating."""
    generator = torch.Generator().manual_seed(seed)
    makers = [ExampleMaker(Task(TEMPLATES[name]), backbone.tokenizer) for name in names]
    scale = float(backbone.embeddings.float().std())
    prompts = [torch.randn(m.virtual, backbone.hidden_size, generator=generator) * scale for m in makers]
    pairs = [(k, maker(row)) for row in rows for k, maker in enumerate(makers)]
    return Case(tuple(e for _, e in pairs), tuple(prompts), tuple(k for k, _ in pairs))


@cache
def backbone(family: str) -> Backbone:
    """One backbone for all tests that only call it: no call may change it."""
    return tiny.backbone(family)


@cache
def plain(family: str) -> PreTrainedModel:
    """The same weights in a model that was never taken in."""
    return tiny.model(family).requires_grad_(False)


def embeds(model: PreTrainedModel, tokens: Sequence[int], prompt: Tensor) -> Tensor:
    """`[1, T, D]`: every token's embedding in order, virtual ones from the prompt."""
    table = model.get_input_embeddings()
    return torch.stack([prompt[-1 - t].to(model.dtype) if t < 0 else table(torch.tensor(t)) for t in tokens])[None]


def logits(model: PreTrainedModel, example: Example, prompt: Tensor) -> Tensor:
    """`[S, V]`, one row for each token of the answer."""
    sequence = embeds(model, (*example.tokens, *example.target[:-1]), prompt)
    return model(inputs_embeds=sequence, use_cache=False).logits[0, -len(example.target) :]


def loss(model: PreTrainedModel, case: Case) -> Tensor:
    """Mean over all the answers' tokens."""
    each = [
        F.cross_entropy(logits(model, example, prompt).float(), torch.tensor(example.target), reduction="sum")
        for example, prompt in case.alone()
    ]
    return torch.stack(each).sum() / sum(len(e.target) for e in case.examples)


@torch.no_grad()
def generate(model: PreTrainedModel, example: Example, prompt: Tensor, **options: Any) -> list[int]:
    sequence = embeds(model, example.tokens, prompt)
    ids = model.generate(inputs_embeds=sequence, attention_mask=torch.ones(sequence.shape[:2]).long(), **options)
    return until_end(ids[0].tolist(), model)


def until_end(ids: list[int], model: PreTrainedModel) -> list[int]:
    """What was generated before the end-of-text token; behind it a batch is padded."""
    end = model.config.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


def assert_close(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the largest wanted value."""
    assert got.shape == wanted.shape
    error, scale = (got - wanted).abs().max(), wanted.abs().max()
    assert error <= tolerance * scale, f"off by {error:.3g} where values reach {scale:.3g}"


def state(model: PreTrainedModel) -> dict[str, Any]:
    """Everything of a model that a call might change: weights to the last bit, settings, flags, hooks, gradients."""
    return {
        "weights": {n: t.detach().numpy().tobytes() for n, t in model.state_dict().items()},
        "gradients": [n for n, p in model.named_parameters() if p.grad is not None or p.requires_grad],
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "generation": model.generation_config.to_dict() if model.can_generate() else None,
        "training": {n: m.training for n, m in model.named_modules()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
    }


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the first argument of every call of a module."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def failing(module: nn.Module) -> Iterator[None]:
    """Every call of a module raises `ZeroDivisionError`, and is awaited to."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    hook = module.register_forward_hook(fail)
    try:
        with pytest.raises(ZeroDivisionError):
            yield
    finally:
        hook.remove()


def first_site(backbone: Backbone) -> nn.Module:
    """The first attention module: every position that is computed passes it once."""
    return backbone.model.get_submodule(backbone.sites[0].name)


def last_site(backbone: Backbone) -> nn.Module:
    return backbone.model.get_submodule(backbone.sites[-1].name)


@contextmanager
def prefixed(model: PreTrainedModel, prefix: Prefix) -> Iterator[None]:
    """Every attention of a plain model sees a prefix: written out with one softmax, for one row that is not padded."""
    numbers: dict[int, list[int]] = {}
    modules = dict(model.named_modules())
    for number, name in enumerate(prefix.sites):
        module = modules.get(name) or modules[name.rpartition(".")[0]]
        numbers.setdefault(id(module), []).append(number)
    calls: dict[int, int] = {}

    def attention(module, query, key, value, attention_mask, scaling=None, position_bias=None, **_):  # type: ignore[no-untyped-def]
        own = numbers[id(module)]
        number = own[calls.get(id(module), 0) % len(own)]
        calls[id(module)] = calls.get(id(module), 0) + 1
        before = prefix.keys[number].shape[0]
        rows = key.shape[0]
        key, value = (
            torch.cat([learned.transpose(0, 1).expand(rows, -1, -1, -1), usual], dim=2)
            for learned, usual in ((prefix.keys[number], key), (prefix.values[number], value))
        )
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        for bias in (position_bias, attention_mask):
            if bias is not None:
                scores = scores + F.pad(bias, (before, 0))
        return (scores.softmax(dim=-1) @ value).transpose(1, 2).contiguous(), None

    usual = model.config._attn_implementation
    AttentionInterface.register("reference", attention)
    AttentionMaskInterface.register("reference", eager_mask)
    model.set_attn_implementation("reference")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def random_prefix(backbone: Backbone, tokens: int = 3, *, seed: int = 4) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    shapes = backbone.site_shapes.values()
    keys, values = (
        tuple(torch.randn(tokens, heads, (key, value)[i], generator=generator) for heads, key, value in shapes)
        for i in (0, 1)
    )
    return Prefix(tuple(backbone.site_shapes), keys, values)


def answer(
    model: PreTrainedModel, backbone: Backbone, example: Example, prompt: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """States and logits at the positions that are read, by a model that was never taken in; of a decoder, the first.

    Without a prompt, the row's virtual tokens stand inside the attention; see `prefixed`.
    """
    tokens = [t for t in example.tokens if t >= 0 or prompt is not None]
    before = len(example.tokens) - len(tokens)
    sequence = embeds(model, tokens, torch.zeros(0) if prompt is None else prompt)
    reads = None if example.reads is None else [i - before for i in example.reads]
    if backbone.kind == "encoder-decoder":
        if reads is not None:
            return model.get_encoder()(inputs_embeds=sequence).last_hidden_state[0, reads], None
        start = backbone.decoder_start
        ids = torch.tensor([[*start, *example.target[:-1]]])
        outputs = model(inputs_embeds=sequence, decoder_input_ids=ids, output_hidden_states=True)
        first = len(start) - 1
        return outputs.decoder_hidden_states[-1][0, first:], outputs.logits[0, first:]
    places = {}
    if backbone.kind == "decoder":
        reads = reads or [len(tokens) - 1]
        if before:
            places = {"position_ids": torch.arange(before, len(example.tokens))[None]}
    states = model.base_model(inputs_embeds=sequence, **places).last_hidden_state[0, reads]
    return states, model(inputs_embeds=sequence, **places).logits[0, reads]
