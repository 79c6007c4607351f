"""How text is generated: what may be asked of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from softprompt.backbone.backbone import Backbone
from softprompt.errors import SettingsError

_SAMPLING = {"temperature", "top_k", "top_p", "min_p", "typical_p"}
_OPTIONS = {
    "bad_words_ids",
    "cache_implementation",
    "do_sample",
    "early_stopping",
    "length_penalty",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "num_beams",
    "repetition_penalty",
    "suppress_tokens",
    "use_cache",
}
_CACHES = (None, "static", "dynamic")


def generation_config(backbone: Backbone, max_new_tokens: int, options: Mapping[str, Any]) -> GenerationConfig:
    """What `generate` is given; greedy unless options say otherwise.

    Raises:
        SettingsError: an option that is not known, or does nothing, or a value that transformers does not take.
    """
    model, tokenizer = backbone.model, backbone.tokenizer
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)  # an encoder has none
    ends = {tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    unknown = set(options) - _OPTIONS - _SAMPLING
    if unknown:
        raise SettingsError(
            f"generation takes no option {', '.join(sorted(unknown))}",
            instead=f"It takes {', '.join(sorted(_OPTIONS | _SAMPLING))}.",
        )
    idle = sorted(set(options) & _SAMPLING)
    if idle and not options.get("do_sample"):
        raise SettingsError(
            f"{', '.join(idle)} would do nothing without sampling",
            where="generate",
            instead="Add do_sample=True, or leave it out.",
        )
    if options.get("cache_implementation") not in _CACHES:
        raise SettingsError(
            f"cache_implementation {options['cache_implementation']!r} is not supported",
            where="cache_implementation",
            instead="Use 'static' or 'dynamic', or leave it out.",
        )
    try:
        return GenerationConfig(
            **{"do_sample": False, **options},
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
            decoder_start_token_id=next(iter(backbone.decoder_start), None),
        )
    except (ValueError, TypeError) as cause:
        raise refused_options(cause) from cause


def refused_options(cause: Exception) -> SettingsError:
    return SettingsError(f"these generation options do not go together: {cause}", where="options")
