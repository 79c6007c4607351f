"""Text generation with prompts: transformers' own `generate`, with a context before every row."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from softprompt.backbone.backbone import Backbone
from softprompt.backbone.context import Context
from softprompt.backbone.positions import cached_tokens, context_lengths, offset_positions


class PromptedModel(nn.Module, GenerationMixin):
    """A backbone that reads an entry of a context before each row. `generate` works as on the model itself.

    The context is not in the model's cache, so whatever `generate` does with its cache goes on working: static caches,
    beams, `use_cache=False`. `prompt_ids` is a plain tensor, which `generate` repeats for beams by itself.

    Args:
        backbone: the frozen model; nothing on it is changed.
        context: what stands before the rows, or None.
    """

    main_input_name = "input_ids"

    def __init__(self, backbone: Backbone, context: Context | None) -> None:
        super().__init__()
        # Not registered as a submodule: the backbone is shared, and is no part of this one's state.
        self.__dict__["backbone"] = backbone
        self.context = context
        self.config = backbone.model.config
        self.generation_config = GenerationConfig.from_dict(backbone.model.generation_config.to_dict())

    backbone: Backbone

    def __getattr__(self, name: str) -> Any:
        """Whatever else `generate` asks of a model (device, dtype, embeddings, ...), the backbone's model answers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.backbone.model, name)

    def generate(self, *args: Any, prompt_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """As transformers does it; `prompt_ids` as in `forward`."""
        if prompt_ids is None and self.context is not None and self.context.size > 1:
            # Said outright, so that it is repeated for beams.
            prompt_ids = torch.arange(self.context.size, device=self.backbone.device)
        return super().generate(*args, prompt_ids=prompt_ids, **kwargs)

    def write(self, inputs_embeds: Tensor, mask: Tensor, prompt_ids: Tensor | None = None, **options: Any) -> Tensor:
        """What is generated behind `[B, T, D]` rows, or by the decoder that reads them: `[B, n]` int64.

        Args:
            inputs_embeds: the rows.
            mask: `[B, T]` bool, True for real tokens.
            prompt_ids: as in `forward`.
            options: of `generate`.
        """
        shared = {"attention_mask": mask.long(), "prompt_ids": prompt_ids, **options}
        start = self.backbone.decoder_start
        if not start:
            return self.generate(inputs_embeds=inputs_embeds, **shared)
        states = self.backbone.outputs(inputs_embeds, mask, self.context, prompt_ids, head=False).states
        begun = torch.tensor(start, device=mask.device).expand(len(mask), -1)
        encoded = BaseModelOutput(last_hidden_state=states)
        return self.generate(encoder_outputs=encoded, decoder_input_ids=begun, **shared)[:, len(start) :]

    @property
    def _can_compile_fullgraph(self) -> bool:
        # A static cache works; compiling the step by itself behind the caller's back is not attempted.
        return False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        prompt_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One step over `[B, T]` tokens.

        Args:
            input_ids: `[B, T]` int64, or
            inputs_embeds: `[B, T, D]`.
            decoder_input_ids: `[B, T]` int64, of an encoder-decoder, beside
            encoder_outputs: what its encoder made of the rows.
            attention_mask: `[B, S]`, 1 for real tokens, S those of the cache included and the context not; or what
                the model takes for a static cache.
            position_ids: `[B, T]` int64 in the whole sequence, context included; counted from the mask if not given.
            prompt_ids: `[B]` int64, the entry of the context before each row; None where there is one, or one per row.
            cache, past_key_values: the model's cache, under the name its version of transformers gives it.
            use_cache: whether to keep one.
            logits_to_keep: logits of the last so many positions alone; 0 for all.
        """
        tokens = next(t for t in (decoder_input_ids, input_ids, inputs_embeds) if t is not None)
        if decoder_input_ids is not None:
            past = cached_tokens(cache, past_key_values)
            position_ids = torch.arange(past, past + tokens.shape[1], device=tokens.device)[None]
            position_ids = position_ids + context_lengths(self.context, prompt_ids)
            kwargs |= {"decoder_input_ids": decoder_input_ids, "encoder_outputs": encoder_outputs}
        elif position_ids is None:
            # For counting alone: a model that keeps a state is given no mask once it has read its rows.
            mask = attention_mask
            if mask is None:
                mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
            position_ids = offset_positions(mask.bool(), self.context, prompt_ids)[:, -tokens.shape[1] :]
        # Only the one that is there: a version of transformers knows one name, or warns at the other.
        caches = {"cache": cache, "past_key_values": past_key_values}
        kwargs |= {name: value for name, value in caches.items() if value is not None}
        if logits_to_keep:
            kwargs["logits_to_keep"] = logits_to_keep
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        kwargs |= {name: tensor for name, tensor in given.items() if tensor is not None}
        return self.backbone.step(
            positions=position_ids,
            context=self.context,
            rows=prompt_ids,
            attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )

    # What a model does in its own way while generating (one that keeps a state drops its mask after the first step, for
    # one), it does here, too.

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        inputs_embeds: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As the model does it, with positions that count the context."""
        # Named, because `generate` looks whether it is.
        kwargs["inputs_embeds"] = inputs_embeds
        inputs = self.backbone.model.prepare_inputs_for_generation(input_ids, **kwargs)
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] + context_lengths(self.context, prompt_ids)
        inputs["prompt_ids"] = prompt_ids
        return inputs

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        # Not by the model itself: a static cache would be left on it.
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        # Some versions of transformers call a state otherwise, and know by the name of the class which model has one.
        if "cache_params" in inspect.signature(self.backbone.model.forward).parameters:
            model_kwargs["cache_params"] = model_kwargs.pop("past_key_values", None)

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.backbone.model._update_model_kwargs_for_generation(*args, **kwargs)

    def _supports_default_dynamic_cache(self) -> bool:
        return self.backbone.model._supports_default_dynamic_cache()
