"""A prompt that is loaded where another one is at work."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

import reference
from our_side import WRITING
from peft_side import IDS, adapted, last_logits
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.learn.evaluation import evaluate
from softprompt.prompts import PrefixTuning, PromptTuning, PTuning
from toys import LABELS, ROWS, TOPICS, learn, prompt

METHODS = {
    "prompt": PromptTuning(tokens=4),
    "p-tuning": PTuning(tokens=4),
    "prefix": PrefixTuning(tokens=4, projection=True, middle=8, init="random"),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
def test_a_prompt_loaded_into_a_serving_engine_answers_as_in_a_fresh_one(method, tmp_path):
    backbone = reference.backbone("llama")
    trained = learn(backbone, WRITING, method=method, steps=2, output=tmp_path / "p").prompt
    requests = [("p", row) for row in ROWS]
    engine, fresh, memory = (Engine(backbone) for _ in range(3))
    engine.add("p", prompt(backbone))
    engine.generate(requests, max_new_tokens=4)
    engine.add("p", tmp_path / "p", replace=True)
    fresh.add("p", tmp_path / "p")
    memory.add("p", trained)
    answers = [e.generate(requests, max_new_tokens=4) for e in (engine, fresh, memory)]
    assert answers[0] == answers[1] == answers[2]


@every_method
def test_the_best_evaluations_prompt_has_the_loss_it_was_kept_for(method, tmp_path):
    backbone = reference.backbone("llama")
    # Trained towards the other answer, so that the last prompt is not the best.
    other = [row | {"label": LABELS[1 - LABELS.index(row["label"])]} for row in ROWS]
    result = learn(backbone, TOPICS, other, ROWS, method, eval_every=1, output=tmp_path / "p")
    losses = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    assert result.metrics["loss"] in losses[:-1]
    loaded = artifact.load(tmp_path / "p", backbone)
    assert evaluate(backbone, loaded, ROWS, progress=False)["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)


@pytest.mark.peer
def test_peft_loads_the_output_of_the_encoder_as_its_input(tmp_path):
    model = adapted("llama", "p-tuning")
    before = last_logits(model)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "default")
    assert (last_logits(model) - before).abs().max() > 0.1


@pytest.mark.peer
def test_peft_fails_to_load_a_prefix_that_a_network_writes(tmp_path):
    model = adapted("llama", "prefix", prefix_projection=True, encoder_hidden_size=8)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path, "default")


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_peft_ends_training_with_another_loss_than_the_best(tmp_path):
    rows = [{"input_ids": IDS[0], "attention_mask": torch.ones_like(IDS[0]), "labels": IDS[0]}] * 2
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(adapted("llama", "p-tuning"), arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert abs(trainer.evaluate()["eval_loss"] - trainer.state.best_metric) > 0.1
