"""Both libraries over one set of weights, and what a comparison is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from softprompt import Backbone
from softprompt.backbone.sources import resolve
from softprompt.run.forward import Filling, Forward
from softprompt.run.loss import answer_loss
from softprompt.text.examples import Example

LEARNING_RATE = 5e-3

FIRST = "default"
"""What PEFT's first adapter is called; its context-aware prompt tuning answers to no other name."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: what the work is.
        sides: "ours", "peft", "bare" (the frozen model alone over the real tokens): each does its work once.
        note: what there is to say beside the numbers.
        once: work of ours that is done once for many times of `sides`, and how many times that is.
    """

    name: str
    sides: Mapping[str, Work]
    note: str = ""
    once: tuple[Work, int] | None = field(default=None)


class Workbench:
    """Both libraries over SmolLM2-135M, with the same tokens and starting points.

    Args:
        dtype: of the weights.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = DTYPES[dtype]
        self.backbone = Backbone.load("smollm2", dtype=dtype)
        folder = resolve("smollm2").folder
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval()
        self.model.requires_grad_(False)
        self.generator = torch.Generator().manual_seed(0)

    def ids(self, rows: int, length: int) -> Tensor:
        return torch.randint(100, 40_000, (rows, length), generator=self.generator)

    def start(self, tokens: int) -> Tensor:
        """`[P, D]` float32: the embeddings of some tokens."""
        return self.backbone.embed(self.ids(1, tokens)[0]).detach().float().clone()

    def peft(self, config: Any, adapters: int = 1) -> nn.Module:
        """The plain model with adapters of one kind, named `FIRST`, "1", "2", ..."""
        from peft import get_peft_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(self.model, config, adapter_name=FIRST)
            for i in range(1, adapters):
                wrapped.add_adapter(adapter(i), config)
        # Frozen they are alike, but dropout must not differ.
        return wrapped.eval()

    def peft_prompts(self, *starts: Tensor) -> nn.Module:
        """One prompt-tuning adapter per start."""
        from peft import PromptTuningConfig

        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(starts[0]))
        wrapped = self.peft(config, len(starts))
        for i, start in enumerate(starts):
            wrapped.prompt_encoder[adapter(i)].embedding.weight.data.copy_(start)
        return wrapped

    def bare(self, ids: Tensor) -> Work:
        """The frozen model alone over the real tokens, with a backward pass to its input: the bound."""
        targets = self.ids(len(ids), 1)[:, 0]
        keep = torch.tensor([ids.shape[1] - 1])

        def step() -> None:
            inputs = self.model.get_input_embeddings()(ids).detach().requires_grad_()
            logits = self.model(inputs_embeds=inputs, use_cache=False, logits_to_keep=keep).logits
            nn.functional.cross_entropy(logits[:, -1].float(), targets).backward()

        return step


def adapter(number: int) -> str:
    """What PEFT's adapter of a number, from 0, is called."""
    return str(number) if number else FIRST


def examples(texts: Tensor, targets: Tensor | None, tokens: int, *, behind: bool = False) -> list[Example]:
    """Rows of `[B, T]` texts with P virtual tokens in front of or behind them, and the `[B]` tokens they are to say."""
    virtual = tuple(-1 - i for i in range(tokens))
    words = [()] * len(texts) if targets is None else [(word,) for word in targets.tolist()]
    return [
        Example((*text, *virtual), 0, word) if behind else Example((*virtual, *text), tokens, word)
        for text, word in zip(texts.tolist(), words, strict=True)
    ]


def our_step(
    forward: Forward,
    rows: Sequence[Example],
    fill: Callable[[], Sequence[Filling]],
    parameters: Sequence[nn.Parameter],
    which: Sequence[int] | None = None,
) -> Callable[[], Tensor]:
    """A training step."""
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = answer_loss(*forward(rows, fill(), which))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def peft_step(
    wrapped: nn.Module, texts: Tensor, targets: Tensor, parameters: Sequence[nn.Parameter], **more: Any
) -> Callable[[], Tensor]:
    """A training step of PEFT's: rows of a text and the word behind it, which alone is a label."""
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    ids = torch.cat([texts, targets[:, None]], dim=1)
    labels = torch.full_like(ids, -100)
    labels[:, -1] = targets
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **more}

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = wrapped(**{name: t.clone() if isinstance(t, Tensor) else t for name, t in inputs.items()}).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def agree(ours: Callable[[], Tensor], peft: Callable[[], Tensor], dtype: torch.dtype) -> None:
    """Both begin at the same loss, or what is compared is not the same work.

    Raises:
        AssertionError: they do not.
    """
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(ours(), peft(), rtol=tolerance, atol=tolerance, check_dtype=False)
