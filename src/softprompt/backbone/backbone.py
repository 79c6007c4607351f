"""The frozen model and its tokenizer: load, freeze, embed, run, fingerprint."""

from __future__ import annotations

import inspect
import logging
import threading
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from softprompt.backbone import loading, recompute, trials
from softprompt.backbone.activations import WORTH, kept_small
from softprompt.backbone.attention import KEYWORD, Reading, Record, route
from softprompt.backbone.compilation import compile_layers
from softprompt.backbone.context import Context, Stretch
from softprompt.backbone.fingerprint import model_fingerprint, tokenizer_fingerprint, weights_digest
from softprompt.backbone.last_layer import narrowed, products_in_last_layer
from softprompt.backbone.outputs import Outputs, bodies, gathering
from softprompt.backbone.positions import cached_tokens, context_lengths, offset_positions
from softprompt.backbone.sites import probe
from softprompt.backbone.text_cache import Shelf, TextCache, as_cache
from softprompt.errors import SettingsError, SourceError

Kind = Literal["decoder", "encoder", "encoder-decoder"]

_LOG = logging.getLogger("softprompt")

# One for each model, whatever backbones are made of it.
_LOCKS: WeakKeyDictionary[PreTrainedModel, Any] = WeakKeyDictionary()


class Backbone:
    """A frozen language model.

    Taking a model in freezes it, puts it in eval mode (its dropout would make kept keys and values wrong) and routes
    its attention through `attend`. Nothing that is called on a backbone afterwards changes the model. Threads may share
    one: its passes go one after the other.

    Attributes:
        model: the transformers model.
        tokenizer: its tokenizer.
        name: as given to `load`.
        kind: "decoder" (a token sees what stands before it), "encoder" (a token sees all others) or "encoder-decoder";
            tried on random tokens, not read off a name.
        speaks: whether it has a language modelling head.
        quantization: how `load` quantised it; None where it did not.
        cache: where the keys and values of texts are kept on disk; None for nowhere.
        state_size: the width of a last hidden state; some models have narrower input embeddings.
        marks_segments: whether it is an encoder that is told which tokens stand behind the first separator.
        sites: where it attends, in calling order.
        lowers: whether what stands in front may be read as keys and values instead of being computed in every row; of
            decoders alone. Checked on random input when the model is taken in, never assumed.
        fingerprint: identifies the weights and what is done with them, whatever dtype they were loaded in.
        tokenizer_fingerprint: identifies the tokenizer.

    Args:
        model: a transformers model; with a language modelling head, unless it is an encoder.
        tokenizer: its tokenizer.
        name: what messages call it.
        gradient_checkpointing, compile: as in `load`.
        quantization: how `load` quantised it.
        cache: as in `load`.
        fingerprint: where it is known; else it is taken from the weights as they are.

    Raises:
        SourceError: the model is of a kind that is not supported.
        SettingsError: gradient checkpointing of a model that has none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "",
        *,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        fingerprint: str | None = None,
        quantization: str | None = None,
        cache: TextCache | str | Path | None = None,
    ) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name or model.config.name_or_path
        self.quantization, self.cache = quantization, as_cache(cache)
        model.requires_grad_(False)
        model.eval()
        self._table = _input_embeddings(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self._bodies = bodies(model)
        self.speaks = model.get_output_embeddings() is not None
        route(model)
        self._recomputed = recompute.prepare(model) if gradient_checkpointing else []
        self.sites, self._site_of = probe(model)
        self._products: list[nn.Module] = []
        self._keeps_small = False
        # What a pass reads and leaves is caught by hooks on the one model: another thread's must wait.
        self._running = _LOCKS.setdefault(model, threading.RLock())
        self.kind: Kind = "encoder-decoder" if model.config.is_encoder_decoder else "decoder"
        if self.kind == "decoder" and not trials.is_causal(self):
            self.kind = "encoder"
        self._check()
        trials.check_padding(self)
        if self.quantized:
            trials.check_gradient(self)
        self.state_size = trials.state_size(self)
        self.marks_segments = trials.marks_segments(self)
        self.fingerprint = fingerprint or model_fingerprint(model)
        self.tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)
        self.lowers = self.kind == "decoder" and trials.lowers(self)
        # A layer that is recomputed or compiled is run as it is.
        as_is = bool(self._recomputed) or compile
        self._keeps_small = not as_is
        self._products = [] if as_is else products_in_last_layer(model, self.sites)
        if not trials.narrows(self):
            self._products = []
        if compile:
            compile_layers(model)
        if self.kind == "decoder" and not self.lowers:
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
        quantization: str | None = None,
        compile: bool = False,
        cache: TextCache | str | Path | None = None,
    ) -> Self:
        """Load a model from a folder, an installed weight package (`smollm2`, `minilm`) or the Hub (`owner/name`).

        An encoder whose files hold no language modelling head is loaded without one: it encodes, but fills no mask.

        Args:
            name: folder, short name of a weight package, or Hub id (`owner/name`, `owner/name@revision`).
            dtype: "float32", "bfloat16" (faster, answers differ in near-ties) or "float16".
            device: "cpu", "cuda", ...; by default a GPU where there is one.
            gradient_checkpointing: recompute layers in the backward pass instead of keeping them.
            quantization: keep the weights in fewer bits: "int8" (with torchao) or "nf4" (with bitsandbytes).
            compile: have torch compile the layers when they are first run; slow to begin with.
            cache: a folder (or `TextCache`) where the keys and values of texts that are read once are kept, for other
                runs and tasks to find.

        Raises:
            SourceError: nothing is found under that name, its weights are damaged or incomplete, or it is no language
                model.
            SettingsError: unknown dtype, device or quantization, one whose library is not installed, or gradient
                checkpointing or compilation of a model that has no layers for it.
            OutputError: the cache's folder cannot be written to.
        """
        cache = as_cache(cache)
        model, tokenizer, fingerprint = loading.load(name, dtype, device, quantization)
        return cls(
            model,
            tokenizer,
            name,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
            fingerprint=fingerprint,
            quantization=quantization,
            cache=cache,
        )

    def _check(self) -> None:
        where = f"{self.name} ({type(self.model).__name__})"
        if self.kind == "encoder" and self.speaks and not loading.may_be_encoder(self.model.config):
            raise SourceError(
                "not a causal language model: what stands behind a token changes what it predicts",
                where=where,
                instead="Use a decoder such as smollm2, or an encoder of another architecture.",
            )
        if self.kind != "encoder" and not self.speaks:
            raise SourceError(
                "it has no language modelling head, so it cannot answer",
                where=where,
                instead="Load it as AutoModelForCausalLM or AutoModelForSeq2SeqLM.",
            )
        shared = len(self.sites) > len(self._site_of)
        if self._recomputed and shared:
            raise SettingsError(
                "its layers share their weights, so a layer that is recomputed cannot be told from the others",
                where=where,
                instead="Load it with gradient_checkpointing=False.",
            )

    @property
    def device(self) -> torch.device:
        return self._table.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._table.weight.dtype

    @cached_property
    def shelf(self) -> Shelf | None:
        """Its texts in `cache`."""
        if self.cache is None:
            return None
        weights = weights_digest(self.model)
        return self.cache.of(weights, str(self.dtype), str(self.quantization), str(self.quantized))

    @property
    def quantized(self) -> bool:
        """Whether its weights are kept in fewer bits than it computes with."""
        return bool(getattr(self.model, "is_quantized", False))

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

    @property
    def pads_in_front(self) -> bool:
        """On which side a batch is padded: in front of decoders, whose answers then end in one column."""
        return self.kind == "decoder"

    @cached_property
    def decoder_start(self) -> tuple[int, ...]:
        """What an encoder-decoder's decoder is given before the answer; empty for the others."""
        if self.kind != "encoder-decoder":
            return ()
        config, begin = self.model.config, self.tokenizer.bos_token_id
        start = getattr(config, "decoder_start_token_id", None)
        # Where every text begins with a token of its own (BART), so does what the decoder was taught to write.
        opens = begin is not None and self.tokenizer("")["input_ids"][:1] == [begin]
        return (config.pad_token_id if start is None else start, *([begin] if opens else []))

    @property
    def positions(self) -> int | None:
        """How many positions a sequence may have; None where the model sets no bound."""
        bound = getattr(self.model.config, "max_position_embeddings", None)
        return None if bound is None else bound - self._reserved_positions()

    def _reserved_positions(self) -> int:
        """Some count positions from behind the padding token's number; those before it are no token's."""
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                return module.padding_idx + 1
        return 0

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids: `[...]` int64 -> `[..., D]`, scaled as the model scales them."""
        return self._table(ids)

    @torch.no_grad()
    def attended(self, embeddings: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values, one `[P, H, E]` per site, that `[P, D]` embeddings leave behind at positions 0 to P - 1.

        An encoder-decoder is given them on both sides.
        """
        inputs = embeddings.to(self.device, self.dtype)[None]
        mask = torch.ones(inputs.shape[:2], dtype=torch.bool, device=self.device)
        record = Record()
        if self.kind == "encoder-decoder":
            self.step(
                positions=torch.arange(mask.shape[1], device=self.device)[None],
                context=None,
                record=record,
                inputs_embeds=inputs,
                decoder_inputs_embeds=inputs,
                use_cache=False,
            )
        else:
            self.outputs(inputs, mask, head=False, record=record)
        (stretch,) = record.stretches(mask)
        return stretch.keys, stretch.values

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
        record, first = Record(), torch.zeros(len(mask), 1, dtype=torch.long, device=self.device)
        self.outputs(inputs_embeds, mask, context, rows, at=first, head=False, record=record)
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
        """Logits `[B, keep, V]` of the last `keep` positions; no other position goes through the LM head.

        Arguments as in `read`.
        """
        batch, length = mask.shape
        at = torch.arange(max(0, length - keep), length, device=self.device).expand(batch, -1)
        logits = self.outputs(inputs_embeds, mask, context, rows, at=at).logits
        assert logits is not None, "it has a head, or it would not have been taken in"
        return logits

    def outputs(
        self,
        inputs_embeds: Tensor,
        mask: Tensor,
        context: Context | None = None,
        rows: Tensor | None = None,
        *,
        at: Tensor | None = None,
        decoder_ids: Tensor | None = None,
        encoded: Tensor | None = None,
        segments: Tensor | None = None,
        head: bool = True,
        record: Record | None = None,
    ) -> Outputs:
        """States, and logits where asked, of a batch.

        Args:
            inputs_embeds, mask, context, rows: as in `read`. Encoders and encoder-decoders take rows padded behind.
            at: `[B, S]` int64, the columns whose states are read and go through the head; None for all.
            decoder_ids: `[B, S]` int64, what an encoder-decoder's decoder reads: its states are then the outputs, all
                of them. Without it they are those of the encoder.
            encoded: `[B, T, D]`, what the encoder has made of `inputs_embeds` already: it is not run again.
            segments: `[B, T]` int64, the segment of each token where there are two; see `marks_segments`.
            head: whether logits are wanted.
            record: filled with the keys and values of these tokens.
        """
        inputs: dict[str, Any] = {"attention_mask": mask.long()}
        if encoded is None:
            inputs["inputs_embeds"] = inputs_embeds.to(self.dtype)
        else:
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded)
        if segments is not None:
            inputs["token_type_ids"] = segments
        encoder_alone = self.kind == "encoder-decoder" and decoder_ids is None
        if self.kind == "encoder-decoder":
            length = mask.shape[1] if decoder_ids is None else decoder_ids.shape[1]
            positions = torch.arange(length, device=mask.device).expand(mask.shape[0], -1)
            positions = positions + context_lengths(context, rows)
            if decoder_ids is not None:
                inputs["decoder_input_ids"] = decoder_ids
        else:
            positions = offset_positions(mask, context, rows)
        if not encoder_alone and self.kind != "encoder":
            inputs["use_cache"] = False
        head = head and self.speaks and not encoder_alone
        run: nn.Module = self.model
        if encoder_alone:
            run = self.model.get_encoder()
        elif not head and self.kind != "encoder-decoder":
            run = self.model.base_model
        with self._running, gathering([run] if encoder_alone else self._bodies, at) as gathered:
            result = self.step(positions=positions, context=context, rows=rows, record=record, at=at, run=run, **inputs)
        assert gathered.states is not None, "probed when the model was taken in"
        return Outputs(gathered.states, result.logits if head else None)

    def step(
        self,
        *,
        positions: Tensor,
        context: Context | None,
        rows: Tensor | None = None,
        record: Record | None = None,
        at: Tensor | None = None,
        run: nn.Module | None = None,
        **inputs: Any,
    ) -> Any:
        """The model's own `forward` over the rest of its arguments, with `context` before the rows.

        Args:
            positions: `[B, T]` int64, position of each token in the whole sequence, context included. Decoders count
                so; an encoder counts its own tokens, and a prefix takes none of its positions.
            context, rows: as in `read`.
            record: filled with the keys and values of these tokens.
            at: `[B, S]` int64, the positions whose states are read; None for all.
            run: the part of the model that is run; all of it if not given.
        """
        if self._takes_positions and self.kind == "decoder":
            inputs["position_ids"] = positions
        keep, length = inputs.get("logits_to_keep"), positions.shape[1]
        if keep:
            # Given an index the model copies the positions it keeps; given a number it slices, and a product with a
            # slice would copy the LM head once for every row.
            inputs["logits_to_keep"] = torch.arange(max(0, length - keep), length, device=positions.device)
        products = [] if at is None else self._products
        with self._running, recompute.recomputing(self._recomputed), ExitStack() as stack:
            if context is not None or record is not None or products:
                past = cached_tokens(inputs.get("cache"), inputs.get("past_key_values"))
                inputs[KEYWORD] = reading = Reading(self._site_of, positions, context, rows, record, past)
                if at is not None and products:
                    stack.enter_context(narrowed(products, at, length, lambda: reading.over))
            if self._keeps_small and positions.numel() * self.hidden_size >= WORTH and torch.is_grad_enabled():
                stack.enter_context(kept_small(self.dtype))
            return (run or self.model)(**inputs)


def _input_embeddings(model: PreTrainedModel) -> nn.Embedding:
    table = model.get_input_embeddings()
    if not isinstance(table, nn.Embedding):
        raise SourceError(f"input embeddings are a {type(table).__name__}, not a table", where=type(model).__name__)
    return table
