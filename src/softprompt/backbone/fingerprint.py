"""What identifies a model and a tokenizer: by these a saved prompt knows what it was made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# What a config says that the weights do not, by every name architectures give it; the first that is set counts.
# A choice, not the whole config: what versions of transformers add, drop or rename must not matter.
_SETTINGS: tuple[tuple[str, ...], ...] = (
    ("model_type",),
    ("num_attention_heads",),
    ("num_key_value_heads", "num_kv_heads"),
    ("sliding_window", "window_size", "attention_window_size"),
    ("attention_chunk_size",),
    ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    ("hidden_activation", "hidden_act", "activation_function", "activation"),
    ("attn_logit_softcapping",),
    ("final_logit_softcapping",),
    ("query_pre_attn_scalar",),
    ("attention_multiplier",),
    ("embedding_multiplier", "scale_emb"),
    ("residual_multiplier", "scale_depth"),
    ("logits_scaling", "logit_scale"),
    ("scale_attn_weights",),
    ("scale_attn_by_inverse_layer_idx",),
    ("use_parallel_residual", "parallel_attn"),
    ("alibi",),
    ("do_layer_norm_before",),
    ("apply_residual_connection_post_layernorm",),
    ("clip_qkv",),
    ("no_rope_layers",),
    ("num_experts_per_tok",),
    ("norm_topk_prob",),
    ("routed_scaling_factor",),
    ("relative_attention_num_buckets",),
    ("relative_attention_max_distance",),
    ("scale_embedding",),
    ("scale_decoder_outputs",),
    ("n_group",),
    ("topk_group",),
)


def model_fingerprint(model: PreTrainedModel) -> str:
    """What the model does with its weights, and of every weight its name, shape and a sample.

    Samples are rounded to bfloat16, so that float32 and bfloat16 loads agree. Weights already rounded to float16 no
    longer tell to which bfloat16 they would have been rounded: `Backbone.load` does not ask them.
    """
    digest = hashlib.sha256(json.dumps(settings(model.config), sort_keys=True).encode())
    for name, parameter in model.named_parameters():
        flat = _dense(parameter.detach()).flatten()
        step = max(1, flat.numel() // 256)
        sample = flat[::step][:256].to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample)
    return digest.hexdigest()[:32]


def weights_digest(model: PreTrainedModel) -> str:
    """Of every number of the model as it is loaded, buffers included: the same for nothing that computes otherwise."""
    digest = hashlib.blake2b(json.dumps(settings(model.config), sort_keys=True).encode(), digest_size=16)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        dense = _dense(tensor.detach()).contiguous().cpu()
        digest.update(f"{name} {dense.dtype} {tuple(dense.shape)}".encode())
        digest.update(dense.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _dense(weight: Any) -> Tensor:
    """Weights that are kept quantised, as numbers."""
    kept = is_traceable_wrapper_subclass(weight)
    return Tensor.dequantize(weight) if kept else weight


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = dict(sorted(tokenizer.get_vocab().items()))
    else:
        # Truncation and padding are settings of a call, not of the tokenizer.
        content = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def settings(config: Any) -> dict[str, Any]:
    """What of a config changes what the same weights compute; None for what an architecture does not have."""
    config = config.get_text_config()
    found = {names[0]: _plain(_first(config, names)) for names in _SETTINGS}
    # Layers of full attention are not listed by every version, and others have weights of other names.
    kinds = getattr(config, "layer_types", None) or ()
    near = {i: kind for i, kind in enumerate(kinds) if kind in ("sliding_attention", "chunked_attention")}
    return found | {"near": sorted(near.items()), "rope": _rope(config)}


def _first(config: Any, names: tuple[str, ...]) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def _rope(config: Any) -> dict[str, Any]:
    """Settings of the rotary positions, of each kind of layer where they differ; empty where there are none."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if any(isinstance(value, Mapping) for value in given.values()):
        return {kind: _one_rope(config, value) for kind, value in given.items() if isinstance(value, Mapping)}
    return _one_rope(config, given)


def _one_rope(config: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    # Older configs hold these beside the scaling, and call its type by another name.
    beside = {name: getattr(config, name, None) for name in ("rope_theta", "partial_rotary_factor")}
    rope = beside | {"rope_type" if name == "type" else name: value for name, value in given.items()}
    rope = {name: _plain(value) for name, value in rope.items() if value is not None}
    # What is said and what is left unsaid may mean the same.
    defaults = {"rope_type": "default", "partial_rotary_factor": 1.0}
    return {name: value for name, value in rope.items() if defaults.get(name) != value}


def _plain(value: Any) -> Any:
    """Numbers as floats: some versions write 10000 where others write 10000.0."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
