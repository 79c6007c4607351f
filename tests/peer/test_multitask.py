"""Multitask prompt tuning."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForQuestionAnswering

import reference
import tiny
from our_side import WRITING, assert_a_batch_equals_each_row_alone
from peft_side import IDS, ONES, TOKENS, adapted, config, with_head
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.learn.sources import Source
from softprompt.prompts import MultitaskPromptTuning, PromptTuning
from toys import ROWS, answered, learn, learn_together, task_of

FIRST = {"task_ids": torch.tensor([0])}


def test_the_factors_leave_the_prompt_as_it_starts():
    shared = MultitaskPromptTuning(tokens=3, rank=2)
    plain = learn(method=PromptTuning(tokens=3), task=WRITING, steps=1).prompt.state.start["embeddings"]
    assert torch.equal(learn(method=shared, task=WRITING, steps=1).prompt.state.start["embeddings"], plain)


def test_everything_that_is_learned_is_there_when_an_encoder_decoder_writes():
    backbone = reference.backbone("t5")
    trained = learn(backbone, WRITING, method=MultitaskPromptTuning(tokens=3), steps=1).prompt
    moved = trained.values.embeddings != trained.state.start["embeddings"]
    assert bool(moved.any(dim=1).all())
    # What is written is what the plain model writes behind these very vectors, and there are no others.
    assert set(trained.tensors()) == {"embeddings"}
    assert_a_batch_equals_each_row_alone(backbone, reference.plain("t5"), trained.task, trained.values)


@pytest.mark.parametrize("kind", ["question-answering", "feature-extraction"])
def test_tasks_of_every_kind_share_a_prompt(kind):
    backbone = reference.backbone("bert")
    rows = [answered(kind, row) for row in ROWS]
    tasks = {name: Source(task_of(kind, backbone), rows) for name in ("one", "other")}
    engine = Engine(backbone)
    for name, prompt in learn_together(backbone, tasks, steps=4, batch_size=6, distill=0).prompts.members.items():
        engine.add(name, prompt)
        moved = prompt.values.embeddings != prompt.state.start["embeddings"]
        assert bool(moved.any(dim=1).all())
    assert len(engine.answer([("one", rows[0]), ("other", rows[0])])) == 2


def test_a_target_needs_no_file_of_its_sources(tmp_path):
    sources = learn_together(distill=0, steps=1, output=tmp_path / "sources").path
    method = MultitaskPromptTuning(tokens=4)
    target = learn(method=method, start=sources, steps=1, output=tmp_path / "target").prompt
    shutil.rmtree(sources)
    loaded = artifact.load(tmp_path / "target", training=True)
    assert torch.equal(loaded.values.embeddings, target.values.embeddings)
    learn(method=method, start=tmp_path / "target", steps=1)


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
