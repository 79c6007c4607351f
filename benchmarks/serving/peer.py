"""PEFT behind the same route: one adapter at a time, as it has no batches of several prompts."""

from __future__ import annotations

import threading
from typing import Any

import torch
from fastapi import FastAPI

from benchmarks.speed.workbench import Workbench, adapter
from softprompt.serve.schema import Completion, CompletionChoice, CompletionRequest


def app(bench: Workbench, starts: list[torch.Tensor]) -> FastAPI:
    """Prompt 0, 1, ... are called "task-0", "task-1", ..."""
    made, wrapped, turn = FastAPI(), bench.peft_prompts(*starts), threading.Lock()
    tokenizer = bench.backbone.tokenizer

    @made.post("/v1/completions")
    def completions(asked: CompletionRequest) -> Completion:
        inputs = tokenizer(asked.prompt, return_tensors="pt")
        options: dict[str, Any] = {"max_new_tokens": asked.max_tokens, "do_sample": False, "pad_token_id": 2}
        with turn, torch.no_grad():
            wrapped.set_adapter(adapter(int(asked.model.removeprefix("task-"))))
            found = wrapped.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(found, skip_special_tokens=True)
        choice = CompletionChoice(index=0, text=text, finish_reason="length")
        return Completion(id="cmpl", created=0, model=asked.model, choices=[choice])

    return made
