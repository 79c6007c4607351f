"""From a name to a model and its tokenizer: every weight read from its files, none of them made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from softprompt.backbone import sources
from softprompt.backbone.fingerprint import model_fingerprint
from softprompt.backbone.quantization import config_for
from softprompt.errors import SettingsError, SourceError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str, dtype: str, device: str | None, quantization: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str | None]:
    """Model, tokenizer and, where the loaded weights no longer tell it, the fingerprint; see `Backbone.load`."""
    if dtype not in DTYPES:
        raise SettingsError(f"dtype {dtype!r} is unknown", instead=f"Use one of {', '.join(DTYPES)}.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(device)
    quantized = config_for(quantization, DTYPES[dtype])
    source = sources.resolve(name)
    # Weights rounded to float16, or to fewer bits, have lost what the fingerprint is taken from. One model at a time
    # is in memory.
    lossy = dtype == "float16" or quantized
    fingerprint = model_fingerprint(_pretrained(source, torch.bfloat16)) if lossy else None
    model = _pretrained(source, DTYPES[dtype], **quantized, **({"device_map": device} if quantized else {}))
    with _refusing(name):
        tokenizer = AutoTokenizer.from_pretrained(source.folder, revision=source.revision)
    return model if quantized else model.to(device), tokenizer, fingerprint


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except Exception as cause:  # each device's backend raises what it likes
        raise SettingsError(
            f"device {device!r} cannot be used: {str(cause).strip().splitlines()[0]}",
            where="device",
            instead="Use cpu, or a GPU that torch can see, such as cuda or cuda:0.",
        ) from cause


def _pretrained(source: sources.Source, dtype: torch.dtype, **options: Any) -> PreTrainedModel:
    """
    Raises:
        SourceError: it cannot be read, or its files lack weights.
    """
    with _refusing(source.name):
        config = AutoConfig.from_pretrained(source.folder, revision=source.revision)
        made_for = _class_for(config)
        model, missing = _read(made_for, source, dtype, **options)
        inside = f"{model.base_model_prefix}."
        if made_for is AutoModelForMaskedLM and missing and not any(name.startswith(inside) for name in missing):
            # An encoder without its language modelling head (an embedding model, say) still encodes.
            model, missing = _read(AutoModel, source, dtype, **options)
            # The pooler's output is never read.
            missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise SourceError(
            f"its files lack weights of a {type(model).__name__}: {', '.join(missing[:3])}{more}",
            where=source.name,
            instead="Use a language model such as smollm2, with all its weights as save_pretrained writes them.",
        )
    return model


def _class_for(config: Any) -> Any:
    """Which of transformers' classes reads a model of that config whole."""
    if getattr(config, "is_encoder_decoder", False):
        return AutoModelForSeq2SeqLM
    named = (getattr(config, "architectures", None) or [""])[0]
    causal = named == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type) or getattr(config, "is_decoder", False)
    return AutoModelForMaskedLM if may_be_encoder(config) and not causal else AutoModelForCausalLM


def may_be_encoder(config: Any) -> bool:
    """Whether there is a masked language model of its architecture."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def _read(
    made_for: Any, source: sources.Source, dtype: torch.dtype, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of the weights that its files lack."""
    with _without_report():
        model, found = made_for.from_pretrained(
            source.folder, dtype=dtype, revision=source.revision, output_loading_info=True, **options
        )
    return model, sorted(found["missing_keys"])


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers warns of every weight that is missing, which is looked at here, or too many, which is right."""
    level = logging.get_verbosity()
    logging.set_verbosity(max(level, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(level)


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
            f"cannot be loaded as a language model: {cause}",
            where=name,
            instead="Use a language model such as smollm2, or a folder written by save_pretrained.",
        ) from cause
