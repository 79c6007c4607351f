"""What holds for every method, present and future."""

from __future__ import annotations

import json

import pytest
import torch

from softprompt.errors import ArtifactError, SettingsError, TemplateError
from softprompt.prompts import METHODS, HardPrompt, PromptTuning, method_named
from softprompt.prompts.method import Host, resolve_task
from softprompt.prompts.prompt import VirtualTokens
from softprompt.text.task import Task
from softprompt.text.template import Template
from softprompt.text.worked import WorkedExamples

HOST = Host(
    size=50,
    width=8,
    special=frozenset({0}),
    encode=lambda text: [1] * len(text),
    embed=lambda ids: torch.ones(len(ids), 8),
    labels=((5,), (6, 7)),
    sites={"first": (2, 4, 4), "second": (2, 4, 3)},
    attend=lambda embeddings: (
        (embeddings.view(-1, 2, 4), embeddings.view(-1, 2, 4)),
        (embeddings.view(-1, 2, 4), embeddings.view(-1, 2, 4)[..., :3]),
    ),
    worked=WorkedExamples((9, 8, 5, 2), ("format", "input", "label", "separator"), (-1, -1, 0, -1), 1),
)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_found_again_by_its_name_and_settings(name):
    method = METHODS[name]()
    assert name == method.NAME
    assert method_named(name, json.loads(json.dumps(method.settings()))) == method


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_if_and_only_if_it_has_slots_and_parameters(name):
    method = METHODS[name]()
    tokens = method.slot_length() if method.recipe() is None else len(HOST.worked)
    parametrization = method.build(tokens, HOST, torch.Generator().manual_seed(0))
    grouped = [p for group in parametrization.groups().values() for p in group]
    assert method.LEARNS == (tokens > 0) == bool(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in parametrization.parameters()}
    values = parametrization()
    assert values.tokens == tokens
    assert values.misfit(8, HOST.sites) is None
    assert (values.at_input is None) == method.INSIDE
    assert (values.inside is None) != method.INSIDE
    again = type(values).from_tensors(values.tensors())
    assert {n: t.tolist() for n, t in again.tensors().items()} == {n: t.tolist() for n, t in values.tensors().items()}


def test_an_unknown_method_or_setting_is_refused():
    with pytest.raises(SettingsError, match=r"method 'lora' is unknown. Use one of hard-prompt, prompt-tuning"):
        method_named("lora", {})
    with pytest.raises(SettingsError, match=r"prompt-tuning has no setting size. It has tokens, init, text"):
        method_named("prompt-tuning", {"size": 3})
    with pytest.raises(SettingsError, match=r"hard-prompt has no setting tokens. It has none"):
        method_named("hard-prompt", {"tokens": 3})


@pytest.mark.parametrize(
    ("template", "resolved"),
    [
        ("Article: {text}{label}", "{soft:7}Article: {text}{label}"),
        ("{text}{soft}\n{label}", "{text}{soft:7}\n{label}"),
        ("{soft}{text}{soft:2}{soft}{label}", "{soft:7}{text}{soft:2}{soft:7}{label}"),
        ("{text}{soft:3}{label}", "{text}{soft:3}{label}"),
    ],
)
def test_a_learning_method_fills_in_slot_and_lengths(template, resolved):
    task = Task(template, {"a": "yes", "b": "no"}, target="answer", max_length=99)
    assert resolve_task(task, PromptTuning(tokens=7)) == task.with_template(Template.parse(resolved))


def test_a_hard_prompt_takes_the_template_as_it_is():
    task = Task("Article: {text}{label}")
    assert resolve_task(task, HardPrompt()) == task


@pytest.mark.parametrize("slot", ["{soft}", "{soft:5}"])
def test_a_hard_prompt_refuses_a_slot(slot):
    with pytest.raises(TemplateError, match="a hard-prompt fills no slot") as refused:
        resolve_task(Task(f"{{text}}{slot}{{label}}"), HardPrompt())
    assert slot in refused.value.where
    assert "Take {soft} out" in refused.value.instead


def test_values_are_stored_as_float32_and_read_back():
    values = VirtualTokens(torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True).T)
    stored = values.tensors()
    assert stored["embeddings"].dtype == torch.float32
    assert stored["embeddings"].is_contiguous()
    assert not stored["embeddings"].requires_grad
    assert torch.equal(VirtualTokens.from_tensors(stored).embeddings, values.embeddings.float())


@pytest.mark.parametrize("tensor", [torch.zeros(3), torch.zeros(1, 3, 4), torch.zeros(3, 4, dtype=torch.int64)])
def test_values_of_another_shape_or_kind_are_refused(tensor):
    with pytest.raises(ArtifactError, match=r"not floating point of shape \[P, D\]"):
        VirtualTokens(tensor)
