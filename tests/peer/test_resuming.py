"""Going on with what was trained."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

import reference
import tiny
from peft_side import CONFIGS, adapted
from softprompt import artifact
from softprompt.prompts import PrefixTuning, PromptTuning, PTuning
from softprompt.text.task import Task
from toys import LABELS, ROWS, at, interrupt, learn

METHODS = {
    "prompt": PromptTuning(tokens=3),
    "p-tuning": PTuning(tokens=3),
    "prefix": PrefixTuning(tokens=3, projection=True, middle=8, init="random"),
}
TASK = Task("Article: {text}\nTopic: {label}", LABELS)

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_method
def test_a_saved_prompt_is_trained_further(method, tmp_path):
    backbone = reference.backbone("llama")
    first = learn(backbone, TASK, method=method, steps=3, learning_rate=0.01, output=tmp_path / "p").prompt
    second = learn(backbone, TASK, method=method, steps=3, learning_rate=0.01, start=tmp_path / "p").prompt
    for name, tensor in first.values.tensors().items():
        assert torch.equal(second.state.start[name], tensor)
        assert not torch.equal(second.values.tensors()[name], tensor)
    # The network that writes the prompt is kept, too, and goes on.
    assert first.state.parameters.keys() == second.state.parameters.keys()


@every_method
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(method, tmp_path):
    settings = {"method": method, "eval_rows": ROWS, "steps": 7, "eval_every": 3, "learning_rate": 0.01}
    straight = learn(task=TASK, output=tmp_path / "straight", **settings)
    with pytest.raises(KeyboardInterrupt):
        learn(task=TASK, output=tmp_path / "p", callbacks=[at("on_step_end", 6, interrupt)], **settings)
    resumed = learn(task=TASK, output=tmp_path / "p", resume=True, **settings)
    for name in (artifact.PROMPT, artifact.TRAINING):
        assert (resumed.path / name).read_bytes() == (straight.path / name).read_bytes()


@pytest.mark.peer
@pytest.mark.parametrize("method", [m for m in CONFIGS if m != "cartridge"])
def test_peft_refuses_to_load_a_prompt_for_training(method, tmp_path):
    adapted("llama", method).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Cannot set a prompt learning adapter to trainable"):
        PeftModel.from_pretrained(tiny.model("llama"), tmp_path, is_trainable=True)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("method", "options"), [("p-tuning", {}), ("prefix", {"prefix_projection": True, "encoder_hidden_size": 8})]
)
def test_peft_keeps_no_network_that_wrote_a_prompt(method, options, tmp_path):
    trained = adapted("llama", method, **options)
    trained.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny.model("llama"), tmp_path)
    names = [[name for name, _ in model.prompt_encoder["default"].named_parameters()] for model in (trained, loaded)]
    assert len(names[0]) > 1
    assert names[1] == ["embedding.weight"]
