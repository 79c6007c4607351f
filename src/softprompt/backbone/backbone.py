"""The frozen model and its tokenizer: load, freeze, embed, run, fingerprint."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.backbone import sources
from softprompt.backbone.attention import KEYWORD, Reading, Record, route
from softprompt.backbone.context import Context, Stretch
from softprompt.backbone.fingerprint import model_fingerprint, tokenizer_fingerprint
from softprompt.backbone.sites import probe
from softprompt.errors import SettingsError, SourceError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_LOG = logging.getLogger("softprompt")


class Backbone:
    """A frozen causal language model.

    Taking a model in freezes it, puts it in eval mode (its dropout would make kept keys and values wrong) and routes
    its attention through `attend`. Nothing that is called on a backbone afterwards changes the model.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
        name: as given to `load`.
        sites: where it attends, in calling order.
        lowers: whether what stands in front may be read as keys and values instead of being computed in every row.
            Checked on random input when the model is taken in, never assumed.
        fingerprint: identifies the weights and what is done with them, whatever dtype they were loaded in.
        tokenizer_fingerprint: identifies the tokenizer.

    Args:
        model: a transformers model with a language modelling head.
        tokenizer: its tokenizer.
        name: what messages call it.
        gradient_checkpointing: as in `load`.
        fingerprint: where it is known; else it is taken from the weights as they are.

    Raises:
        SourceError: the model is not causal, or is of a kind that is not supported.
        SettingsError: gradient checkpointing of a model that has none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "",
        *,
        gradient_checkpointing: bool = False,
        fingerprint: str | None = None,
    ) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise SourceError(
                "encoder-decoder models are not supported yet",
                where=type(model).__name__,
                instead="Use a decoder (a causal language model).",
            )
        self.model, self.tokenizer, self.name = model, tokenizer, name or model.config.name_or_path
        model.requires_grad_(False)
        model.eval()
        self._table = _input_embeddings(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        route(model)
        self._recomputed = _checkpoint(model) if gradient_checkpointing else []
        self._check()
        self.sites, self._site_of = probe(model)
        self.fingerprint = fingerprint or model_fingerprint(model)
        self.tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)
        self.lowers = self._lowers()
        if not self.lowers:
            _LOG.warning(
                "%s (%s): its attention cannot read what is computed once for many rows; prompts are computed in "
                "every row instead, which is slower but right.",
                self.name or "model",
                type(model).__name__,
            )

    @classmethod
    def load(
        cls,
        name: str,
        *,
        dtype: str = "float32",
        device: str | None = None,
        gradient_checkpointing: bool = False,
    ) -> Self:
        """Load a decoder from a folder, an installed weight package (`smollm2`) or the Hub (`owner/name`).

        Args:
            name: folder, short name of a weight package, or Hub id (`owner/name`, `owner/name@revision`).
            dtype: "float32", "bfloat16" (faster, answers differ in near-ties) or "float16".
            device: "cpu", "cuda", ...; by default a GPU where there is one.
            gradient_checkpointing: recompute layers in the backward pass instead of keeping them.

        Raises:
            SourceError: nothing is found under that name, its weights are damaged or incomplete, or it is not a causal
                language model.
            SettingsError: unknown dtype or device, or gradient checkpointing of a model that has none.
        """
        if dtype not in DTYPES:
            raise SettingsError(f"dtype {dtype!r} is unknown", instead=f"Use one of {', '.join(DTYPES)}.")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _check_device(device)
        source = sources.resolve(name)
        # Weights rounded to float16 have lost what the fingerprint is taken from. One model at a time is in memory.
        fingerprint = model_fingerprint(_pretrained(source, torch.bfloat16)) if dtype == "float16" else None
        model = _pretrained(source, DTYPES[dtype])
        with _refusing(name):
            tokenizer = AutoTokenizer.from_pretrained(source.folder, revision=source.revision)
        model.to(device)
        return cls(model, tokenizer, name, gradient_checkpointing=gradient_checkpointing, fingerprint=fingerprint)

    @property
    def device(self) -> torch.device:
        return self._table.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._table.weight.dtype

    @property
    def hidden_size(self) -> int:
        """D, the width of an input embedding."""
        return self._table.weight.shape[1]

    @property
    def embeddings(self) -> Tensor:
        """The input embedding table, `[V, D]`."""
        return self._table.weight

    @property
    def vocabulary_size(self) -> int:
        """V, tokens that have an embedding: rows of the table past the tokenizer's last token are padding."""
        return min(len(self.tokenizer), self.embeddings.shape[0])

    @property
    def site_shapes(self) -> dict[str, tuple[int, int, int]]:
        """For each attention site, in calling order, its name and `(H, key width, value width)`."""
        return {site.name: (site.heads, site.key_width, site.value_width) for site in self.sites}

    @torch.no_grad()
    def attended(self, embeddings: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values, one `[P, H, E]` per site, that `[P, D]` embeddings leave behind at positions 0 to P - 1."""
        inputs = embeddings.to(self.device, self.dtype)[None]
        (stretch,) = self.read(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool, device=self.device))
        return stretch.keys, stretch.values

    @property
    def positions(self) -> int | None:
        """How many positions a sequence may have; None where the model sets no bound."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids: `[...]` int64 -> `[..., D]`, scaled as the model scales them."""
        return self._table(ids)

    def read(
        self, inputs_embeds: Tensor, mask: Tensor, context: Context | None = None, rows: Tensor | None = None
    ) -> list[Stretch]:
        """Run rows only for the keys and values they leave behind; one `Stretch` per row, padding left out.

        Args:
            inputs_embeds: `[B, T, D]`.
            mask: `[B, T]` bool, True for real tokens.
            context: what stands before the rows.
            rows: `[B]` int64, the entry of `context` each row reads; None where there is one, or one per row.
        """
        record = Record()
        self.step(record=record, headless=True, **self._arguments(inputs_embeds, mask, context, rows))
        return record.stretches(mask)

    def logits(
        self,
        inputs_embeds: Tensor,
        mask: Tensor,
        context: Context | None = None,
        rows: Tensor | None = None,
        *,
        keep: int,
    ) -> Tensor:
        """Next-token logits `[B, keep, V]` of the last `keep` positions; no other position goes through the LM head.

        Arguments as in `read`.
        """
        outputs = self.step(logits_to_keep=keep, **self._arguments(inputs_embeds, mask, context, rows))
        return outputs.logits

    def _arguments(
        self, inputs_embeds: Tensor, mask: Tensor, context: Context | None, rows: Tensor | None
    ) -> dict[str, Any]:
        return {
            "inputs_embeds": inputs_embeds.to(self.dtype),
            "attention_mask": mask.long(),
            "positions": offset_positions(mask, context, rows),
            "context": context,
            "rows": rows,
            "use_cache": False,
        }

    def step(
        self,
        *,
        positions: Tensor,
        context: Context | None,
        rows: Tensor | None = None,
        record: Record | None = None,
        headless: bool = False,
        **inputs: Any,
    ) -> Any:
        """The model's own `forward` over the rest of its arguments, with `context` before the rows.

        Args:
            positions: `[B, T]` int64, position of each token in the whole sequence, context included.
            context, rows: as in `read`.
            record: filled with the keys and values of these tokens.
            headless: stop before the LM head.
        """
        if self._takes_positions:
            inputs["position_ids"] = positions
        keep, length = inputs.get("logits_to_keep"), positions.shape[1]
        if keep:
            # Given an index the model copies the positions it keeps; given a number it slices, and a product with a
            # slice would copy the LM head once for every row.
            inputs["logits_to_keep"] = torch.arange(max(0, length - keep), length, device=positions.device)
        if context is not None or record is not None:
            inputs[KEYWORD] = Reading(self._site_of, positions, context, rows, record)
        with self._recomputing():
            return (self.model.base_model if headless else self.model)(**inputs)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """transformers checkpoints a layer in training mode only, and takes its cache away while it does."""
        for layer in self._recomputed:
            layer.training = torch.is_grad_enabled()
        try:
            yield
        finally:
            for layer in self._recomputed:
                layer.training = False

    @torch.no_grad()
    def _check(self) -> None:
        """Is a position's logit the same whatever stands behind it, and wherever the row is padded? Tried on tokens.

        Raises:
            SourceError: it is not; every plan and every batch rests on both.
        """
        size, length, padding = self.embeddings.shape[0], 9, 3
        row = torch.randint(size, (length,), generator=torch.Generator().manual_seed(0))
        other, padded = row.clone(), row.roll(padding)
        other[-1] = (row[-1] + size // 2) % size
        mask = torch.ones(3, length, dtype=torch.bool, device=self.device)
        mask[2, :padding] = False
        ids = torch.stack([row, other, padded]).to(self.device)
        logits = self.logits(self.embed(ids), mask, keep=length).float()
        if self._differ(logits[0, :-1], logits[1, :-1]):
            raise SourceError(
                "not a causal language model: what stands behind a token changes what it predicts",
                where=f"{self.name} ({type(self.model).__name__})",
                instead="Use a decoder such as smollm2.",
            )
        if self._differ(logits[0, :-padding], logits[2, padding:]):
            raise SourceError(
                "it answers differently when its row is padded, so rows cannot share a batch",
                where=f"{self.name} ({type(self.model).__name__})",
                instead="Use a decoder that heeds its attention mask, such as smollm2.",
            )

    def _differ(self, these: Tensor, those: Tensor) -> bool:
        """Whether logits `[T, V]` differ by more than rounding, at the worst position; NaN does not count."""
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        error = (these - those).square().mean(dim=-1).sqrt().max()
        return bool(error > tolerance * these.std().clamp_min(1e-6))

    @torch.no_grad()
    def _lowers(self) -> bool:
        """Does reading a context equal having it in the sequence? Tried on a few tokens."""
        if not self.sites or _shifts_with_length(self.model, self.sites):
            return False
        ids = torch.randint(self.embeddings.shape[0], (1, 9), generator=torch.Generator().manual_seed(0))
        inputs = self.embed(ids.to(self.device))
        mask = torch.ones(1, 9, dtype=torch.bool, device=self.device)
        whole = self.logits(inputs, mask, keep=4).float()
        context = Context.of([self.read(inputs[:, :5], mask[:, :5])])
        lowered = self.logits(inputs[:, 5:], mask[:, 5:], context, keep=4).float()
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        return bool((whole - lowered).abs().max() <= tolerance * whole.std().clamp_min(1e-6))


def offset_positions(mask: Tensor, context: Context | None, rows: Tensor | None) -> Tensor:
    """Position of each token in its whole sequence, `[B, T]` int64; padding is given its neighbour's.

    Args:
        mask: `[B, T]` bool, True for real tokens.
        context: what stands before the rows, `rows` the entry each reads.
    """
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0) + context_lengths(context, rows)


def context_lengths(context: Context | None, rows: Tensor | None) -> Tensor | int:
    """How many positions stand before each row: `[B, 1]` int64, `[1, 1]` where all have one entry, 0 where none."""
    if context is None:
        return 0
    return (context.lengths if rows is None else context.lengths.index_select(0, rows))[:, None]


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except Exception as cause:  # each device's backend raises what it likes
        raise SettingsError(
            f"device {device!r} cannot be used: {str(cause).strip().splitlines()[0]}",
            where="device",
            instead="Use cpu, or a GPU that torch can see, such as cuda or cuda:0.",
        ) from cause


def _pretrained(source: sources.Source, dtype: torch.dtype) -> PreTrainedModel:
    """The model with every weight read from its files, none of them made up.

    Raises:
        SourceError: it cannot be read, is no causal language model, or lacks weights.
    """
    with _refusing(source.name):
        model, found = AutoModelForCausalLM.from_pretrained(
            source.folder, dtype=dtype, revision=source.revision, output_loading_info=True
        )
    missing = sorted(found["missing_keys"])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise SourceError(
            f"its files lack weights of a causal language model: {', '.join(missing[:3])}{more}",
            where=source.name,
            instead="Use a decoder such as smollm2, with all its weights as save_pretrained writes them.",
        )
    return model


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """What transformers raises at files it cannot use, as one error."""
    try:
        yield
    except SafetensorError as cause:
        raise SourceError(
            f"its weights are damaged or cut off: {cause}", where=name, instead="Download or save them again."
        ) from cause
    except (OSError, ValueError, KeyError, RuntimeError) as cause:  # the last at weights of other shapes
        raise SourceError(
            f"cannot be loaded as a causal language model: {cause}",
            where=name,
            instead="Use a decoder such as smollm2, or a folder written by save_pretrained.",
        ) from cause


def _input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise SourceError(f"input embeddings are a {type(table).__name__}, not a table", where=type(model).__name__)
    return table


def _checkpoint(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """Have the layers recomputed in the backward pass; returns them.

    Not by the model's own method: that asks for gradients of the frozen embeddings as well.
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


def _recompute(layer: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Run a layer under a checkpoint, in eval mode: some apply dropout of their own."""

    def run(*args: Any) -> Any:
        training, layer.training = layer.training, False
        try:
            return function(*args)
        finally:
            layer.training = training

    return checkpoint(run, *args, use_reentrant=False)


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
