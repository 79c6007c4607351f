"""Answers of many tasks by SmolLM2-135M. PEFT has one adapter at a time, so it answers task by task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.workbench import Case, Workbench, adapter, examples
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.run.generation import PromptedModel


def mixed(bench: Workbench, tasks: int, rows: int, tokens: int, length: int, new: int) -> Case:
    """Rows of several tasks; `new` tokens are written, or where that is 0 the next one is told."""
    texts, starts = bench.ids(rows, length), [bench.start(tokens) for _ in range(tasks)]
    which = [row % tasks for row in range(rows)]
    forward = Forward(bench.backbone)
    fillings = [Filling(VirtualTokens(start), {}) for start in starts]
    mine = examples(texts, None, tokens)
    wrapped = bench.peft_prompts(*starts)
    options: dict[str, Any] = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "pad_token_id": 2,
    }
    parts = [[row for row in range(rows) if which[row] == task] for task in range(tasks)]

    @torch.no_grad()
    def ours() -> Tensor:
        if not new:
            return forward(mine, fillings, which)[0][:, -1].argmax(-1)
        ready = forward.prepare(mine, fillings, which)
        model = PromptedModel(bench.backbone, ready.context)
        return model.generate(
            inputs_embeds=ready.inputs_embeds,
            attention_mask=ready.mask.long(),
            prompt_ids=ready.rows,
            **options,
        )

    @torch.no_grad()
    def peft() -> Tensor:
        answers: list[Tensor] = [torch.empty(0)] * rows
        for task, members in enumerate(parts):
            wrapped.set_adapter(adapter(task))
            own = texts[members]
            mask = torch.ones_like(own)
            if new:
                found = wrapped.generate(input_ids=own, attention_mask=mask, **options)[:, length:]
            else:
                found = wrapped(input_ids=own, attention_mask=mask, use_cache=False).logits[:, -1].argmax(-1)
            for member, answer in zip(members, found, strict=True):
                answers[member] = answer
        return torch.stack(answers)

    @torch.no_grad()
    def alone() -> Tensor:
        """The plain model, row by row, the prompt in its sequence: what is right."""
        answers = []
        for row, task in zip(texts, which, strict=True):
            inputs = torch.cat([starts[task].to(bench.dtype), bench.backbone.embed(row)])[None]
            mask = torch.ones(inputs.shape[:2], dtype=torch.long)
            if new:
                answers.append(bench.model.generate(inputs_embeds=inputs, attention_mask=mask, **options)[0])
            else:
                answers.append(bench.model(inputs_embeds=inputs, attention_mask=mask).logits[0, -1].argmax(-1))
        return torch.stack(answers)

    verb = f"generate {new} tokens" if new else "classify"
    name = f"{verb}, {tasks} tasks mixed, B={rows}, P={tokens}, T={length}"
    return Case(name, {"ours": ours, "peft": peft}, wrong(alone(), bench.dtype, ours=ours, PEFT=peft))


def one_text(bench: Workbench, tasks: int, tokens: int, length: int) -> Case:
    """Many tasks about one text, each prompt behind it (PEFT: in front)."""
    text, starts = bench.ids(1, length), [bench.start(tokens) for _ in range(tasks)]
    fillings = [Filling(VirtualTokens(start), {}) for start in starts]
    mine = examples(text, None, tokens, behind=True) * tasks
    # Kept from one pass to the next it would be read once in the whole comparison.
    forward = Forward(bench.backbone)
    wrapped = bench.peft_prompts(*starts)

    @torch.no_grad()
    def ours() -> Tensor:
        forward.reader.forget()
        return forward(mine, fillings, list(range(tasks)))[0][:, -1].argmax(-1)

    @torch.no_grad()
    def peft() -> None:
        for task in range(tasks):
            wrapped.set_adapter(adapter(task))
            wrapped(input_ids=text, attention_mask=torch.ones_like(text), use_cache=False)

    @torch.no_grad()
    def alone() -> Tensor:
        answers = []
        for start in starts:
            inputs = torch.cat([bench.backbone.embed(text[0]), start.to(bench.dtype)])[None]
            answers.append(bench.model(inputs_embeds=inputs, use_cache=False).logits[0, -1].argmax(-1))
        return torch.stack(answers)

    name = f"one text of {length} tokens, {tasks} tasks with P={tokens} behind it"
    return Case(name, {"ours": ours, "peft": peft}, wrong(alone(), bench.dtype, ours=ours))


def wrong(right: Tensor, dtype: torch.dtype, **sides: Callable[[], Tensor]) -> str:
    """How many rows each side answers otherwise than the plain model; ours must answer none so.

    Raises:
        AssertionError: in float32 one of ours is wrong. In bfloat16 near-ties fall either way.
    """
    counts = {side: int((work() != right).reshape(len(right), -1).any(dim=1).sum()) for side, work in sides.items()}
    assert dtype != torch.float32 or not counts["ours"], "answers otherwise than the plain model"
    said = [f"{'softprompt' if side == 'ours' else side} {count}" for side, count in counts.items() if count]
    return f"rows of {len(right)} answered otherwise than the plain model: {', '.join(said)}" if said else ""
