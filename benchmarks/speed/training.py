"""Steps of training on SmolLM2-135M."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.speed.workbench import FIRST, LEARNING_RATE, Case, Workbench, agree, examples, our_step, peft_step
from softprompt.learn.losses import AnswerLoss
from softprompt.learn.objective import Objective
from softprompt.learn.training import host
from softprompt.prompts import ContextAwarePromptTuning
from softprompt.prompts.prompt import Prefix, VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.text.examples import Example
from softprompt.text.task import Task
from softprompt.text.worked import WorkedExamples

EPOCHS = 10


def prompt(bench: Workbench, tokens: int, rows: int, length: int, *, behind: bool = False) -> Case:
    """Prompt tuning. PEFT puts its virtual tokens in front, wherever ours are: the work is of the same size."""
    texts, targets, start = bench.ids(rows, length), bench.ids(rows, 1)[:, 0], bench.start(tokens)
    forward = Forward(bench.backbone)
    mine = examples(texts, targets, tokens, behind=behind)
    values = nn.Parameter(start.clone())
    ours = our_step(forward, mine, lambda: [Filling(VirtualTokens(values))], [values])
    wrapped = bench.peft_prompts(start)
    theirs = wrapped.prompt_encoder[FIRST].embedding.weight
    peft = peft_step(wrapped, texts, targets, [theirs], use_cache=False)

    def read() -> None:
        forward.reader.forget()
        forward.reader.read_ahead([forward.plan(example) for example in mine])

    if behind:
        read()
    else:
        agree(ours, peft, bench.dtype)
    place = "behind" if behind else "in front"
    # Of texts that are read once the bare model would be no bound.
    bare = {} if behind else {"bare": bench.bare(texts)}
    return Case(
        f"train, P={tokens} {place}, B={rows}, T={length}",
        {"ours": ours, "peft": peft} | bare,
        once=(read, EPOCHS) if behind else None,
    )


def context_aware(bench: Workbench, worked: int, context: int, rows: int, length: int) -> Case:
    """Context-aware prompt tuning with `worked` examples in a context of so many tokens."""
    from peft import CPTConfig

    each = context // worked
    ids = bench.ids(1, worked * each)[0].tolist()
    # Each worked example: its text, its answer, a separator.
    kinds, types, answers = [], [], []
    for example in range(worked):
        kinds += ["input"] * (each - 2) + ["label", "separator"]
        types += [4 * example + 2] * (each - 2) + [4 * example + 4, 4 * example + 3]
        answers += [-1] * (each - 2) + [example, -1]
    built = ContextAwarePromptTuning(examples=worked).build(
        0,
        host(
            bench.backbone,
            [example_maker(bench.backbone, Task("{text}{label}", ["a", "b"]))],
            WorkedExamples(tuple(ids), tuple(kinds), tuple(answers), worked),
        ),
        bench.generator,
    )
    texts, targets = bench.ids(rows, length), bench.ids(rows, 1)[:, 0]
    mine: list[tuple[int, Example]] = [(0, e) for e in examples(texts, targets, len(ids))]
    objective = Objective(Forward(bench.backbone), [AnswerLoss()])
    optimizer = torch.optim.AdamW(built.parameters(), lr=LEARNING_RATE)

    def ours() -> None:
        optimizer.zero_grad()
        objective(built, mine).backward()
        optimizer.step()
        built.after_step()

    wrapped = bench.peft(
        CPTConfig(
            task_type="CAUSAL_LM",
            cpt_token_ids=ids,
            cpt_mask=[1] * len(ids),
            cpt_tokens_type_mask=types,
            opt_weighted_loss_type="decay",
            opt_loss_decay_factor=0.95,
        )
    )
    kinds_of_row = torch.tensor([[2] * length + [4]] * rows)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    peft = peft_step(wrapped, texts, targets, parameters, input_type_mask=kinds_of_row, use_cache=False)
    return Case(
        f"context-aware, {worked} worked examples of {each} tokens, B={rows}, T={length}",
        {"ours": ours, "peft": peft},
    )


def multitask(bench: Workbench, tasks: int, tokens: int, rows: int, length: int) -> Case:
    """The shared prompt and the factors of several tasks, in a batch of all of them."""
    from peft import MultitaskPromptTuningConfig

    texts, targets, start = bench.ids(rows, length), bench.ids(rows, 1)[:, 0], bench.start(tokens)
    which = [row % tasks for row in range(rows)]
    wrapped = bench.peft(
        MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, num_tasks=tasks, num_ranks=1)
    )
    encoder = wrapped.prompt_encoder[FIRST]
    encoder.embedding.weight.data.copy_(start)
    shared = nn.Parameter(start.clone())
    columns = [nn.Parameter(encoder.prefix_task_cols[k].detach().clone()) for k in range(tasks)]
    rows_of = [nn.Parameter(encoder.prefix_task_rows[k].detach().clone()) for k in range(tasks)]

    def fill() -> list[Filling]:
        return [Filling(VirtualTokens(shared * (u @ v))) for u, v in zip(columns, rows_of, strict=True)]

    mine = examples(texts, targets, tokens)
    ours = our_step(Forward(bench.backbone), mine, fill, [shared, *columns, *rows_of], which)
    parameters = [p for p in wrapped.parameters() if p.requires_grad]
    peft = peft_step(wrapped, texts, targets, parameters, task_ids=torch.tensor(which), use_cache=False)
    agree(ours, peft, bench.dtype)
    return Case(
        f"multitask, {tasks} tasks mixed, P={tokens}, B={rows}, T={length}",
        {"ours": ours, "peft": peft},
    )


def prefix(bench: Workbench, tokens: int, rows: int, length: int) -> Case:
    """Prefix tuning without reparametrisation."""
    from peft import PrefixTuningConfig

    texts, targets = bench.ids(rows, length), bench.ids(rows, 1)[:, 0]
    sites, shapes = tuple(bench.backbone.site_shapes), list(bench.backbone.site_shapes.values())
    wrapped = bench.peft(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens))
    table = wrapped.prompt_encoder[FIRST].embedding.weight
    table.data.copy_(torch.randn(table.shape, generator=bench.generator) * 0.5)
    # [P, sites * 2 * H * E], a key and a value of each site in turn.
    heads, width, _ = shapes[0]
    parts = table.detach().view(tokens, len(shapes), 2, heads, width)
    keys, values = ([nn.Parameter(parts[:, s, kind].clone()) for s in range(len(shapes))] for kind in (0, 1))

    def fill() -> list[Filling]:
        return [Filling(Prefix(sites, tuple(keys), tuple(values)))]

    mine = examples(texts, targets, tokens)
    ours = our_step(Forward(bench.backbone), mine, fill, [*keys, *values])
    peft = peft_step(wrapped, texts, targets, [table])
    agree(ours, peft, bench.dtype)
    return Case(f"prefix, P={tokens}, B={rows}, T={length}", {"ours": ours, "peft": peft, "bare": bench.bare(texts)})
