"""Multitask prompt tuning."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForQuestionAnswering

import tiny
from peft_side import IDS, ONES, TOKENS, adapted, config, with_head

FIRST = {"task_ids": torch.tensor([0])}


@pytest.mark.peer
def test_pefts_factors_erase_the_prompt_they_are_to_change():
    model = get_peft_model(tiny.model("llama"), config("multitask", num_tasks=2))
    shared = model.prompt_encoder["default"].embedding.weight.detach().clone()
    # Each factor has a deviation of 0.02, so their product leaves 0.0004 of what was there.
    assert model.get_prompt(1, **FIRST).std() < 0.002 * shared.std()


@pytest.mark.peer
def test_peft_trains_a_prompt_for_the_decoder_that_generating_leaves_out():
    model = adapted("t5", "multitask", "SEQ_2_SEQ_LM")
    weight = model.prompt_encoder["default"].embedding.weight
    model(IDS, attention_mask=ONES, labels=IDS, **FIRST).loss.backward()
    assert bool((weight.grad[TOKENS:] != 0).any(dim=1).all())
    scores = []
    for factor in (1, -5):
        with torch.no_grad():
            weight[TOKENS:] *= factor
        options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        scores.append(torch.stack(model.generate(input_ids=IDS, attention_mask=ONES, **FIRST, **options).logits))
    assert torch.equal(*scores)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("auto", "task_type"), [(AutoModelForQuestionAnswering, "QUESTION_ANS"), (AutoModel, "FEATURE_EXTRACTION")]
)
def test_peft_loses_the_number_of_the_task(auto, task_type):
    model = adapted(with_head("bert", auto), "multitask", task_type)
    with pytest.raises(ValueError, match="task_ids cannot be None"):
        model(IDS, attention_mask=ONES, **FIRST)


@pytest.mark.peer
def test_peft_cannot_load_an_adapted_prompt_without_the_one_it_came_from(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    adapted("llama", "multitask", num_tasks=2).save_pretrained(source)
    options = {"prompt_tuning_init_state_dict_path": str(source / "adapter_model.safetensors")}
    adapted("llama", "multitask", prompt_tuning_init="AVERAGE_SOURCE_TASKS", **options).save_pretrained(target)
    assert PeftModel.from_pretrained(tiny.model("llama"), target)
    shutil.rmtree(source)
    with pytest.raises(FileNotFoundError, match="adapter_model"):
        PeftModel.from_pretrained(tiny.model("llama"), target)
