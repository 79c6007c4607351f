"""What holds of every method that learns: nothing else is touched, training equals serving, a run can be resumed."""

from __future__ import annotations

import pytest
import torch

import reference
import tiny
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.errors import SettingsError
from softprompt.learn.evaluation import evaluate
from softprompt.prompts import (
    ContextAwarePromptTuning,
    HardPrompt,
    MultitaskPromptTuning,
    PrefixTuning,
    PromptTuning,
    PTuning,
)
from softprompt.text.task import Task
from softprompt.text.worked import KINDS
from toys import LABELS, ROWS, at, interrupt, learn

METHODS = {
    "prompt-tuning": PromptTuning(tokens=3),
    "prefix": PrefixTuning(tokens=3),
    "prefix-mlp": PrefixTuning(tokens=3, projection=True, middle=8, init="random"),
    "prefix-sink": PrefixTuning(tokens=3, sink=True, init="text", text="Topic"),
    "p-tuning-lstm": PTuning(tokens=3),
    "p-tuning-mlp": PTuning(tokens=3, encoder="mlp", residual=False),
    "p-tuning-direct": PTuning(tokens=3, encoder="none"),
    "context-aware": ContextAwarePromptTuning(examples=2, example_length=3, separator="\n"),
    "multitask": MultitaskPromptTuning(tokens=3),
    "multitask-rank-2": MultitaskPromptTuning(tokens=3, rank=2, init="text", text="Topic"),
}
TASK = Task("Article: {text}\nTopic: {label}", LABELS)
WRITING = Task("Article: {text}\nTopic: {label}")

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def learned(method, prompt) -> list[bool]:
    """Which positions of a prompt are learned."""
    if "kinds" in prompt.state.parameters:
        return [KINDS[kind] in ("input", "format") for kind in prompt.state.parameters["kinds"]]
    return [i >= int(getattr(method, "sink", False)) for i in range(3)]


@every_method
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_backbone_stays_and_every_position_moves(family, method):
    backbone = tiny.backbone(family)
    before = {name: t.clone() for name, t in backbone.model.state_dict().items()}
    result = learn(backbone, TASK, method=method, steps=3, learning_rate=0.01)
    assert all(torch.equal(before[name], t) for name, t in backbone.model.state_dict().items())
    start, now = result.prompt.state.start, result.prompt.values.tensors()
    for name, tensor in now.items():
        moved = (tensor != start[name]).flatten(1).any(dim=1)
        assert moved.tolist() == learned(method, result.prompt)


@every_method
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_training_evaluating_serving_and_the_saved_prompt_agree(family, method, tmp_path):
    backbone = reference.backbone(family)
    result = learn(backbone, TASK, eval_rows=ROWS, method=method, output=tmp_path / "p", learning_rate=0.01)
    loaded = artifact.load(tmp_path / "p", backbone, training=True)
    assert evaluate(backbone, loaded, ROWS, progress=False)["loss"] == pytest.approx(result.metrics["loss"], rel=1e-5)
    engine = Engine(backbone)
    engine.add("p", tmp_path / "p")
    answers = engine.classify([("p", row) for row in ROWS])
    losses = [-torch.tensor(a.probabilities[row["label"]]).log() for a, row in zip(answers, ROWS, strict=True)]
    assert float(torch.stack(losses).mean()) == pytest.approx(result.metrics["loss"], rel=1e-4)


@every_method
def test_a_stopped_run_goes_on_to_the_last_bit(method, tmp_path):
    settings = {"method": method, "eval_rows": ROWS, "steps": 7, "eval_every": 3, "learning_rate": 0.01}
    straight = learn(task=TASK, output=tmp_path / "straight", **settings)
    with pytest.raises(KeyboardInterrupt):
        learn(task=TASK, output=tmp_path / "p", callbacks=[at("on_step_end", 6, interrupt)], **settings)
    resumed = learn(task=TASK, output=tmp_path / "p", resume=True, **settings)
    for name in (artifact.PROMPT, artifact.TRAINING):
        assert (resumed.path / name).read_bytes() == (straight.path / name).read_bytes()


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral"])
def test_a_batch_of_all_methods_equals_each_alone(family):
    backbone = reference.backbone(family)
    engine, alone = Engine(backbone), {}
    for name, method in {**METHODS, "hard": HardPrompt()}.items():
        settings = {"steps": 1, "learning_rate": 0.05} if method.LEARNS else {}
        trained = learn(backbone, TASK, method=method, **settings).prompt
        engine.add(name, trained)
        alone[name] = Engine(backbone)
        alone[name].add(name, trained)
    requests = [(name, row) for row in ROWS[:3] for name in alone]
    for request, answer in zip(requests, engine.classify(requests), strict=True):
        (wanted,) = alone[request[0]].classify([request])
        assert answer.label == wanted.label
        assert answer.probabilities == pytest.approx(wanted.probabilities, rel=1e-4)
    written = engine.generate(requests, max_new_tokens=4)
    assert written == [alone[name].generate([(name, row)], max_new_tokens=4)[0] for name, row in requests]


@every_method
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_every_way_of_generating_mixes_rows(method, options):
    backbone = reference.backbone("llama")
    engine = Engine(backbone)
    engine.add("p", learn(backbone, WRITING, method=method, steps=1, learning_rate=0.05).prompt)
    requests = [("p", row) for row in ROWS]
    together = engine.generate(requests, max_new_tokens=5, **options)
    assert together == [engine.generate([request], max_new_tokens=5, **options)[0] for request in requests]
    if "num_beams" not in options:
        assert together == engine.generate(requests, max_new_tokens=5)


@pytest.mark.parametrize("method", ["prefix", "p-tuning-lstm", "context-aware"])
def test_gradient_checkpointing_trains_the_same(method):
    plain, saving = (
        learn(
            tiny.backbone(gradient_checkpointing=on), TASK, method=METHODS[method], learning_rate=0.01
        ).prompt.values.tensors()
        for on in (False, True)
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(saving[name], tensor, rtol=1e-5, atol=1e-6)


@every_method
def test_a_saved_prompt_is_begun_from(method, tmp_path):
    backbone = reference.backbone("llama")
    first = learn(backbone, TASK, method=method, output=tmp_path / "first", learning_rate=0.01)
    second = learn(backbone, TASK, method=method, start=tmp_path / "first", steps=1, learning_rate=1e-12)
    for name, tensor in first.prompt.values.tensors().items():
        assert torch.equal(second.prompt.state.start[name], tensor)
        torch.testing.assert_close(second.prompt.values.tensors()[name], tensor)


def test_a_prompt_of_another_kind_is_not_begun_from(tmp_path):
    backbone = reference.backbone("llama")
    learn(backbone, TASK, method=METHODS["prefix"], output=tmp_path / "prefix", steps=1)
    with pytest.raises(SettingsError, match=r"it is a prefix-tuning prompt, not prompt-tuning"):
        learn(backbone, TASK, method=METHODS["prompt-tuning"], start=tmp_path / "prefix")
    with pytest.raises(SettingsError, match=r"what it learned is .* 3 x .*, what is asked for .* 5 x .*"):
        learn(backbone, TASK, method=PrefixTuning(tokens=5), start=tmp_path / "prefix")
