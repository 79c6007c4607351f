"""Steps of training on MiniLM-L6, an encoder: a prompt and a head that reads each row's first token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModel

from benchmarks.speed.workbench import LEARNING_RATE, Case, Work
from softprompt import Backbone
from softprompt.backbone.sources import resolve
from softprompt.prompts.prompt import Prefix, Values, VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.text.examples import Example

LABELS = 5


def training(method: str, tokens: int, rows: int, length: int) -> Case:
    """A step with "prompt tuning" or a "prefix".

    PEFT 0.21.2 has no prefix for an encoder with transformers 5 (its keys and values are given as a cache, which an
    encoder no longer looks at), so for that the other side is PEFT's prompt tuning with as many virtual tokens.
    """
    from peft import PromptTuningConfig, get_peft_model

    generator = torch.Generator().manual_seed(0)
    backbone = Backbone.load("minilm")
    model = AutoModel.from_pretrained(resolve("minilm").folder, dtype=torch.float32).eval().requires_grad_(False)
    texts = torch.randint(2_000, 20_000, (rows, length), generator=generator)
    targets = torch.randint(LABELS, (rows,), generator=generator)
    weight = torch.randn(LABELS, backbone.hidden_size, generator=generator) * 0.02

    def step(read: Work, parameters: list[nn.Parameter]) -> Work:
        """`read` gives the states `[B, D]` of the rows' first tokens."""
        head = nn.Parameter(weight.clone())
        optimizer = torch.optim.AdamW([*parameters, head], lr=LEARNING_RATE)

        def work() -> Tensor:
            optimizer.zero_grad()
            states = read()
            assert isinstance(states, Tensor)
            loss = nn.functional.cross_entropy(states @ head.T, targets)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return work

    table = nn.Parameter(backbone.embed(texts[0, :tokens]).clone())
    sites = backbone.site_shapes
    keys, values = (
        [nn.Parameter(torch.randn(tokens, heads, width, generator=generator)) for heads, width, _ in sites.values()]
        for _ in range(2)
    )
    prefix = method == "prefix"
    parameters = [*keys, *values] if prefix else [table]

    def filling() -> Values:
        return Prefix(tuple(sites), tuple(keys), tuple(values)) if prefix else VirtualTokens(table)

    # As PEFT has it the prompt stands before the first token too, whose state is read.
    virtual = tuple(-1 - i for i in range(tokens))
    mine = [Example((*virtual, *text), tokens, reads=(tokens,)) for text in texts.tolist()]
    forward = Forward(backbone)
    config = PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=tokens)
    wrapped = get_peft_model(model, config).eval()
    theirs = wrapped.prompt_encoder["default"].embedding.weight
    theirs.data.copy_(table.data)
    mask = torch.ones_like(texts)

    def bare() -> Tensor:
        inputs = model.get_input_embeddings()(texts).detach().requires_grad_()
        return model(inputs_embeds=inputs, attention_mask=mask).last_hidden_state[:, 0]

    ours = step(lambda: forward.answers(mine, [Filling(filling())], head=False).states[:, 0], parameters)
    peft = step(lambda: wrapped(input_ids=texts, attention_mask=mask).last_hidden_state[:, tokens], [theirs])
    if not prefix:
        torch.testing.assert_close(ours(), peft(), rtol=1e-4, atol=1e-5)
    return Case(
        f"{method}, P={tokens}, B={rows}, T={length}",
        {"ours": ours, "peft": peft, "bare": step(bare, [])},
        "PEFT: prompt tuning, it has no prefix here" if prefix else "",
    )
