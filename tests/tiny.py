"""Tiny random models of many architectures: breadth at no cost. Each is 2 layers of width 32, float32, seeded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from softprompt.backbone.backbone import Backbone

VOCABULARY = 400
POSITIONS = 128

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_GROUPED = SHAPE | {"num_key_value_heads": 2, "head_dim": 8}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

_CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: AutoConfig.for_model("llama", **_GROUPED),
    "gpt2": lambda: AutoConfig.for_model("gpt2", **_GPT2),
    "qwen3": lambda: AutoConfig.for_model("qwen3", **_GROUPED),
    # One sliding and one full layer; the window is shorter than most test rows.
    "gemma3": lambda: AutoConfig.for_model(
        "gemma3_text",
        **_GROUPED,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    ),
    "mistral": lambda: AutoConfig.for_model("mistral", **_GROUPED, sliding_window=6),
    "opt": lambda: AutoConfig.for_model("opt", **SHAPE, ffn_dim=48, word_embed_proj_dim=32),
    "gpt_neox": lambda: AutoConfig.for_model("gpt_neox", **SHAPE),
}

# Attention that is not on transformers' registry, keys wider than values, and no attention at all.
_UNUSUAL: dict[str, Callable[[], PreTrainedConfig]] = {
    "bloom": lambda: AutoConfig.for_model("bloom", **SHAPE, n_layer=2, n_head=4),
    "falcon": lambda: AutoConfig.for_model("falcon", **SHAPE),
    "deepseek_v3": lambda: AutoConfig.for_model(
        "deepseek_v3",
        **SHAPE,
        first_k_dense_replace=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=6,
    ),
    "mamba": lambda: AutoConfig.for_model("mamba", **SHAPE | {"intermediate_size": 64}, state_size=4),
}
_ENCODERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: AutoConfig.for_model("bert", **SHAPE),
    "roberta": lambda: AutoConfig.for_model("roberta", **SHAPE),
    # Input embeddings narrower than the states; Albert's layers share their weights, too.
    "electra": lambda: AutoConfig.for_model("electra", **SHAPE, embedding_size=16),
    "albert": lambda: AutoConfig.for_model("albert", **SHAPE, embedding_size=16),
    "distilbert": lambda: AutoConfig.for_model(
        "distilbert",
        vocab_size=VOCABULARY,
        dim=32,
        hidden_dim=48,
        n_layers=2,
        n_heads=4,
        max_position_embeddings=POSITIONS,
        pad_token_id=2,
    ),
    # One sliding and one full layer.
    "modernbert": lambda: AutoConfig.for_model(
        "modernbert", **SHAPE, global_attn_every_n_layers=2, local_attention=6, cls_token_id=0, sep_token_id=1
    ),
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# As many layers on one side as on the other, and not (transformers' own cache does not hold more on the decoder's).
_ENCODER_DECODERS: dict[str, Callable[[], PreTrainedConfig]] = {
    "t5": lambda: AutoConfig.for_model("t5", **_T5),
    "mt5": lambda: AutoConfig.for_model("mt5", **_T5 | {"num_layers": 3, "num_decoder_layers": 2}),
    "bart": lambda: AutoConfig.for_model(
        "bart",
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        decoder_start_token_id=1,
    ),
}

FAMILIES = tuple(_CONFIGS)
"""Decoders."""
ENCODERS = tuple(_ENCODERS)
ENCODER_DECODERS = tuple(_ENCODER_DECODERS)
UNROUTED = ("bloom", "falcon", "mamba")
"""Those that read no context."""


def random_model(
    config: PreTrainedConfig, auto: Any = AutoModelForCausalLM, *, seed: int = 0, attention: str | None = None
) -> PreTrainedModel:
    """A random model; weights large enough that every position matters to every later one."""
    torch.manual_seed(seed)
    made = auto.from_config(config, attn_implementation=attention, dtype=torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return made.eval()


def config(family: str) -> PreTrainedConfig:
    return (_CONFIGS | _UNUSUAL | _ENCODERS | _ENCODER_DECODERS)[family]()


def model(family: str, *, seed: int = 0, attention: str | None = None) -> PreTrainedModel:
    """A random model of a family, with its language modelling head."""
    classes = dict.fromkeys(_ENCODERS, AutoModelForMaskedLM) | dict.fromkeys(_ENCODER_DECODERS, AutoModelForSeq2SeqLM)
    return random_model(config(family), classes.get(family, AutoModelForCausalLM), seed=seed, attention=attention)


_AROUND = {"encoder": "<s> $A </s>", "bart": "<s> $A </s>", "t5": "$A </s>"}


def tokenizer(around: str = "decoder") -> PreTrainedTokenizerBase:
    """A byte-pair tokenizer trained on a few sentences; every text can be written in it.

    `around` says what it puts around a text: "decoder" nothing, "encoder" and "bart" a token on either side, "t5" one
    behind it.
    """
    special = ["<s>", "</s>", "<pad>", *(["<mask>"] if around == "encoder" else [])]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = [
        "Article: the team won the match",
        "Topic: sports",
        "Topic: business",
        "the market fell",
        "Answer: yes",
    ]
    made.train_from_iterator(sentences * 4, trainer)
    if around in _AROUND:
        made.post_processor = processors.TemplateProcessing(
            single=_AROUND[around], special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made, **tokens, **({"mask_token": "<mask>"} if around == "encoder" else {})
    )


def tokenizer_of(family: str) -> PreTrainedTokenizerBase:
    """The tiny tokenizer as models of a family have theirs."""
    if family in ENCODERS:
        return tokenizer("encoder")
    return tokenizer({"t5": "t5", "mt5": "t5", "bart": "bart"}.get(family, "decoder"))


def backbone(family: str = "llama", *, seed: int = 0, attention: str | None = None, **options: bool) -> Backbone:
    """A tiny random backbone with the tiny tokenizer."""
    made = model(family, seed=seed, attention=attention)
    return Backbone(made, tokenizer_of(family), f"tiny-{family}", **options)
