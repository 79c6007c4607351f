"""The same work done by softprompt and by PEFT, in turns, in one process: medians, and their ratio.

    python benchmarks/against_peft.py [--repeats 5] [--only TEXT] [--json FILE]

Both sides have the same SmolLM2-135M in float32, the same token ids, starting prompt and AdamW. Where both compute the
same thing (a prompt in front), losses and gradients are compared first; answers are compared with those of the plain
model, row by row. PEFT always puts its virtual tokens in front; where softprompt has them behind the text, the work is
of the same size and the place differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from softprompt import Backbone
from softprompt.backbone.sources import resolve
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.run.generation import PromptedModel
from softprompt.run.loss import answer_loss
from softprompt.text.examples import Example

LEARNING_RATE = 5e-3


@dataclass(frozen=True)
class Case:
    """One comparison: what it is called, both sides as callables, and what must be done once before."""

    name: str
    ours: Callable[[], object]
    peft: Callable[[], object]
    bare: Callable[[], object] | None = None
    note: str = ""


class Workbench:
    """Both libraries over one set of weights."""

    def __init__(self) -> None:
        self.backbone = Backbone.load("smollm2")
        folder = resolve("smollm2").folder
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.generator = torch.Generator().manual_seed(0)

    def ids(self, rows: int, length: int) -> Tensor:
        return torch.randint(100, 40_000, (rows, length), generator=self.generator)

    def start(self, tokens: int) -> Tensor:
        return self.backbone.embed(self.ids(1, tokens)[0]).detach().clone()

    def peft(self, *starts: Tensor) -> nn.Module:
        """The plain model with one prompt-tuning adapter per start, named "0", "1", ..."""
        from peft import PromptTuningConfig, get_peft_model

        config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(starts[0]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(self.model, config, adapter_name="0")
            for i in range(1, len(starts)):
                wrapped.add_adapter(str(i), config)
        for i, start in enumerate(starts):
            wrapped.prompt_encoder[str(i)].embedding.weight.data.copy_(start)
        return wrapped.eval()

    def bare(self, ids: Tensor) -> Callable[[], object]:
        """The frozen model alone over the real tokens, with a backward pass to its input: the bound."""
        targets = self.ids(len(ids), 1)[:, 0]

        def step() -> None:
            inputs = self.model.get_input_embeddings()(ids).detach().requires_grad_()
            keep = torch.tensor([ids.shape[1] - 1])
            logits = self.model(inputs_embeds=inputs, use_cache=False, logits_to_keep=keep).logits
            nn.functional.cross_entropy(logits[:, -1], targets).backward()

        return step

    def training(self, tokens: int, rows: int, length: int, *, behind: bool) -> Case:
        ids, targets, start = self.ids(rows, length), self.ids(rows, 1), self.start(tokens)
        forward = Forward(self.backbone)
        virtual = tuple(-1 - i for i in range(tokens))
        texts = [tuple(row) for row in ids.tolist()]
        examples = [
            Example((*text, *virtual) if behind else (*virtual, *text), 0 if behind else tokens, (target,))
            for text, target in zip(texts, targets[:, 0].tolist(), strict=True)
        ]
        note = ""
        if behind:
            began = time.perf_counter()
            forward.reader.read_ahead([forward.plan(e) for e in examples])
            note = f"+ {(time.perf_counter() - began) / rows:.3f} s per text, once"
        values = nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([values], lr=LEARNING_RATE)

        def ours() -> Tensor:
            optimizer.zero_grad()
            loss = answer_loss(*forward(examples, [Filling(VirtualTokens(values))]))
            loss.backward()
            optimizer.step()
            return loss.detach()

        wrapped = self.peft(start)
        theirs = wrapped.prompt_encoder["0"].embedding.weight
        peer_optimizer = torch.optim.AdamW([theirs], lr=LEARNING_RATE)
        full = torch.cat([ids, targets], dim=1)
        labels = torch.full_like(full, -100)
        labels[:, -1] = targets[:, 0]

        def peft() -> Tensor:
            peer_optimizer.zero_grad()
            loss = wrapped(input_ids=full, attention_mask=torch.ones_like(full), labels=labels, use_cache=False).loss
            loss.backward()
            peer_optimizer.step()
            return loss.detach()

        if not behind:
            torch.testing.assert_close(ours(), peft(), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(values.grad, theirs.grad, rtol=1e-3, atol=1e-6)
        place = "behind" if behind else "in front"
        return Case(f"train, P={tokens} {place}, B={rows}, T={length}", ours, peft, self.bare(ids), note)

    def answering(self, tasks: int, rows: int, tokens: int, length: int, new: int) -> Case:
        """Mixed tasks in one batch. PEFT has one adapter at a time, so it answers task by task."""
        ids, starts = self.ids(rows, length), [self.start(tokens) for _ in range(tasks)]
        which = [row % tasks for row in range(rows)]
        forward = Forward(self.backbone)
        fillings = [Filling(VirtualTokens(start), {}) for start in starts]
        virtual = tuple(-1 - i for i in range(tokens))
        examples = [Example((*virtual, *text), tokens) for text in ids.tolist()]
        wrapped = self.peft(*starts)
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 2}
        parts = [[row for row in range(rows) if which[row] == task] for task in range(tasks)]

        @torch.no_grad()
        def ours() -> Tensor:
            if not new:
                return forward(examples, fillings, which)[0][:, -1].argmax(-1)
            ready = forward.prepare(examples, fillings, which)
            model = PromptedModel(self.backbone, ready.context)
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
                wrapped.set_adapter(str(task))
                mine = ids[members]
                mask = torch.ones_like(mine)
                if new:
                    found = wrapped.generate(input_ids=mine, attention_mask=mask, **options)[:, length:]
                else:
                    found = wrapped(input_ids=mine, attention_mask=mask, use_cache=False).logits[:, -1].argmax(-1)
                for member, answer in zip(members, found, strict=True):
                    answers[member] = answer
            return torch.stack(answers)

        @torch.no_grad()
        def alone() -> Tensor:
            """The plain model, row by row, the prompt in its sequence: what is right."""
            answers = []
            for row, task in zip(ids, which, strict=True):
                inputs = torch.cat([starts[task], self.backbone.embed(row)])[None]
                mask = torch.ones(inputs.shape[:2], dtype=torch.long)
                if new:
                    answers.append(self.model.generate(inputs_embeds=inputs, attention_mask=mask, **options)[0])
                else:
                    answers.append(self.model(inputs_embeds=inputs, attention_mask=mask).logits[0, -1].argmax(-1))
            return torch.stack(answers)

        right = alone()
        torch.testing.assert_close(ours(), right)
        wrong = int((peft() != right).reshape(rows, -1).any(dim=1).sum())
        note = f"PEFT answers {wrong} of {rows} rows wrongly" if wrong else ""
        verb = f"generate {new} tokens" if new else "classify"
        return Case(f"{verb}, {tasks} tasks mixed, B={rows}, P={tokens}, T={length}", ours, peft, note=note)


def cases(bench: Workbench) -> dict[str, Callable[[], Case]]:
    return {
        "front-20": lambda: bench.training(20, 8, 32, behind=False),
        "front-100": lambda: bench.training(100, 8, 32, behind=False),
        "behind-10": lambda: bench.training(10, 16, 200, behind=True),
        "classify": lambda: bench.answering(32, 32, 20, 24, 0),
        "generate": lambda: bench.answering(8, 32, 20, 24, 8),
    }


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(case: Case, repeats: int) -> dict[str, object]:
    """Medians over repeats in which the sides take turns."""
    sides = {"ours": case.ours, "peft": case.peft} | ({"bare": case.bare} if case.bare else {})
    times: dict[str, list[float]] = {side: [] for side in sides}
    for work in sides.values():
        work()
    for _ in range(repeats):
        for side, work in sides.items():
            times[side].append(seconds(work))
    medians = {side: statistics.median(measured) for side, measured in times.items()}
    return {"case": case.name, **medians, "ratio": medians["peft"] / medians["ours"], "note": case.note}


def main() -> None:
    parser = argparse.ArgumentParser(description="softprompt against PEFT")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="only the cases whose key holds this")
    parser.add_argument("--json", type=Path, help="write the figures into this file, too")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bench = Workbench()
    rows = []
    chosen = {key: make for key, make in cases(bench).items() if arguments.only in key}
    for make in track(chosen.values(), description="Comparing", console=Console(stderr=True)):
        rows.append(compare(make(), arguments.repeats))
    table = Table(title=f"SmolLM2-135M, float32, {torch.get_num_threads()} threads, medians of {arguments.repeats}")
    for column in ("work", "PEFT [s]", "softprompt [s]", "ratio", "bare model [s]", ""):
        table.add_column(column, justify="left" if column in ("work", "") else "right")
    for row in rows:
        bare = f"{row['bare']:.2f}" if "bare" in row else ""
        table.add_row(
            str(row["case"]), f"{row['peft']:.2f}", f"{row['ours']:.2f}", f"{row['ratio']:.1f}x", bare, str(row["note"])
        )
    Console(width=140).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
