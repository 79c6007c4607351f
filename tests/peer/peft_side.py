"""PEFT's prompts on the same tiny models as ours."""

from __future__ import annotations

from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import tiny

TOKENS = 3
"""P of every prompt here."""

IDS = torch.tensor([[10, 11, 12, 13, 14]])
ONES = torch.ones_like(IDS)

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2, "eos_token_id": 1}

CONFIGS = {
    "prompt": "PromptTuningConfig",
    "p-tuning": "PromptEncoderConfig",
    "multitask": "MultitaskPromptTuningConfig",
    "context-aware": "CPTConfig",
    "prefix": "PrefixTuningConfig",
    "cartridge": "CartridgeConfig",
}
"""By name: another version of PEFT may lack some, and our own tests run beside it."""

AT_INPUT = ("prompt", "p-tuning", "multitask", "context-aware")
"""Those whose prompt stands at the input."""


def config(method: str, task_type: str = "CAUSAL_LM", **options: Any) -> PeftConfig:
    """Settings of one of PEFT's methods."""
    usual: dict[str, Any] = {"num_virtual_tokens": TOKENS}
    if method == "context-aware":
        # A worked example of three tokens: a part of the template, the input, the answer.
        usual = {"cpt_token_ids": [5, 6, 7], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 4]}
    return getattr(peft, CONFIGS[method])(task_type=task_type, **usual | options)


def adapted(
    model: PreTrainedModel | str, method: str, task_type: str = "CAUSAL_LM", *, seed: int = 0, **options: Any
) -> PeftModel:
    """A tiny model with a prompt that can be seen in every logit."""
    model = tiny.model(model) if isinstance(model, str) else model
    made = get_peft_model(model, config(method, task_type, **options))
    fill(made, seed)
    return made.eval()


@torch.no_grad()
def fill(made: PeftModel, seed: int, adapter: str = "default") -> None:
    """Random numbers for whatever of a prompt is trained."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.prompt_encoder[adapter].parameters():
        if parameter.requires_grad:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def task_of(method: str) -> dict[str, Tensor]:
    """What only one of the methods asks for."""
    return {"task_ids": torch.tensor([0])} if method == "multitask" else {}


@torch.no_grad()
def last_logits(made: PeftModel, ids: Tensor = IDS, mask: Tensor | None = None, **options: Any) -> Tensor:
    """`[V]`, behind the last token of one row."""
    return made(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **options).logits[0, -1]


@torch.no_grad()
def written(made: PeftModel, method: str, **options: Any) -> list[int]:
    """What PEFT generates behind one row."""
    inputs = {"input_ids": IDS, "attention_mask": ONES} | task_of(method)
    return made.generate(**inputs, **GREEDY | options)[0, IDS.shape[1] :].tolist()


@torch.no_grad()
def written_in_sequence(made: PeftModel, method: str, family: str) -> list[int]:
    """What the plain model generates where PEFT's prompt stands in the row's sequence."""
    model = tiny.model(family)
    sequence = torch.cat([made.get_prompt(1, **task_of(method)), model.get_input_embeddings()(IDS)], dim=1)
    return model.generate(inputs_embeds=sequence, attention_mask=torch.ones(sequence.shape[:2]).long(), **GREEDY)[
        0
    ].tolist()


@torch.no_grad()
def written_anew(made: PeftModel) -> list[int]:
    """Greedily, every step a forward of PEFT's over the whole row."""
    ids = IDS
    for _ in range(GREEDY["max_new_tokens"]):
        ids = torch.cat([ids, last_logits(made, ids).argmax().view(1, 1)], dim=1)
    return ids[0, IDS.shape[1] :].tolist()


def with_head(family: str, auto: Any, labels: int = 2) -> PreTrainedModel:
    """A tiny model with another head than that for words."""
    config = tiny.config(family)
    config.num_labels, config.pad_token_id = labels, 2
    return tiny.random_model(config, auto)


def narrow_opt() -> PreTrainedModel:
    """Input embeddings of width 16 before states of width 32."""
    config = tiny.config("opt")
    config.word_embed_proj_dim = 16
    return tiny.random_model(config, AutoModelForCausalLM)
