"""What is computed that need not be."""

from __future__ import annotations

import pytest
import torch

import reference
from peft_side import IDS, TOKENS, adapted
from reference import inputs_of
from softprompt.prompts import PrefixTuning, PTuning
from softprompt.run.forward import Forward
from softprompt.text.task import Task
from toys import ROWS, at, learn

# All of one length: what is counted is counted without padding.
SHORT = ({"text": "won", "label": "x"}, {"text": "fell", "label": "y"}, {"text": "won", "label": "x"})


def shapes(seen: list[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(t.shape[:2]) for t in seen]


def test_a_prompt_is_computed_once_for_all_rows_and_answers_alone_go_through_the_head():
    backbone = reference.backbone("llama")
    given = reference.case(["front"], backbone, rows=SHORT)
    forward = Forward(backbone)
    assert len({len(e.tokens) for e in given.examples}) == 1
    whole, row = (len(t) for t in (given.examples[0].tokens, forward.plan(given.examples[0]).row))
    with (
        inputs_of(reference.first_site(backbone)) as attended,
        inputs_of(backbone.model.get_output_embeddings()) as headed,
    ):
        forward(given.examples, given.fillings)
    answers = len(given.examples[0].target)
    # The prompt with the hard text behind it in one row, then what is left of every row.
    assert shapes(attended) == [(1, whole - row), (len(SHORT), row + answers - 1)]
    assert shapes(headed) == [(len(SHORT), answers)]


@pytest.mark.peer
@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
def test_peft_computes_the_prompt_for_every_row_and_the_head_for_every_position(method):
    model, ids = adapted("llama", method), IDS.expand(4, -1)
    base = model.get_base_model()
    with inputs_of(base.model.layers[0].self_attn) as attended, inputs_of(base.lm_head) as headed:
        model(ids, attention_mask=torch.ones_like(ids), labels=ids)
    assert shapes(attended) == shapes(headed) == [(4, TOKENS + ids.shape[1])]


@pytest.mark.parametrize(
    ("method", "network"),
    [
        (PrefixTuning(tokens=TOKENS, projection=True, middle=8, init="random"), "first_layer"),
        (PTuning(TOKENS), "encoder.first"),
    ],
    ids=["prefix", "p-tuning"],
)
def test_the_network_that_writes_a_prompt_is_run_once_a_step(method, network):
    seen: list[torch.Tensor] = []

    def watch(learner):
        module = learner.parametrization.get_submodule(network)
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    task = Task("Article: {text}\nTopic: {label}")
    learn(reference.backbone("llama"), task, method=method, steps=2, callbacks=[at("on_train_begin", 0, watch)])
    # Twice while training; once more for the prompt that is kept.
    assert [t.shape[0] for t in seen] == [TOKENS] * 3
    assert len(ROWS) > 1


@pytest.mark.peer
@pytest.mark.parametrize(("method", "network", "runs"), [("prefix", "transform", 4), ("p-tuning", "mlp_head", 1)])
def test_peft_runs_the_network_that_writes_a_prefix_for_every_row(method, network, runs):
    options = {"prefix_projection": True} if method == "prefix" else {}
    model, ids = adapted("llama", method, **options), IDS.expand(4, -1)
    with inputs_of(model.prompt_encoder["default"].get_submodule(network)) as seen:
        model(ids, attention_mask=torch.ones_like(ids))
    assert shapes(seen) == [(runs, TOKENS)]
    assert all(torch.equal(seen[0][0], row) for row in seen[0])
