from __future__ import annotations

import pytest
import torch

from softprompt.errors import SettingsError
from softprompt.prompts.method import Host, count
from softprompt.prompts.prompt_tuning import PromptTuning


def vocabulary(width: int, labels=()) -> Host:
    """A model that is known by its width alone."""
    table = torch.randn(200, width, generator=torch.Generator().manual_seed(0))
    return Host(200, width, frozenset({0, 1}), lambda text: [ord(c) for c in text], lambda ids: table[ids], labels)


def build(method: PromptTuning, tokens: int, width: int = 8, labels=()):
    return method.build(tokens, vocabulary(width, labels), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("width", "published"),
    [(512, 51_200), (768, 76_800), (1024, 102_400), (2048, 204_800), (4096, 409_600)],
    ids=["T5 Small", "Base", "Large", "XL", "XXL"],
)
def test_the_parameters_are_as_many_as_published(width, published):
    parametrization = build(PromptTuning(tokens=100, init="random"), 100, width)
    assert count(list(parametrization.parameters())) == published
    assert count([p for group in parametrization.groups().values() for p in group]) == published


@pytest.mark.parametrize(
    "method",
    [PromptTuning(init="random"), PromptTuning(), PromptTuning(init="text", text="abc"), PromptTuning(init="labels")],
)
def test_the_prompt_is_its_parameters(method):
    parametrization = build(method, 5, labels=((50,), (51, 52)))
    values = parametrization()
    assert values.embeddings.shape == (5, 8)
    values.embeddings.sum().backward()
    (parameter,) = parametrization.groups()["prompt"]
    assert torch.equal(parameter.grad, torch.ones(5, 8))
    before = parameter.detach().clone()
    parametrization.after_step()
    assert torch.equal(parameter, before)


def test_a_slot_takes_the_methods_own_length():
    assert PromptTuning(tokens=7).slot_length() == 7
    # Two slots: the template decides how many vectors there are.
    assert build(PromptTuning(tokens=7), 14)().tokens == 14


def test_settings_are_what_json_can_hold_and_give_the_method_again():
    method = PromptTuning(tokens=3, init="text", text="Which topic?")
    assert method.settings() == {"tokens": 3, "init": "text", "text": "Which topic?"}
    assert PromptTuning(**method.settings()) == method


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"tokens": -5}, "tokens is -5"),
        ({"tokens": 2.5}, "tokens is 2.5"),
        ({"tokens": "20"}, "tokens is '20'"),
        ({"tokens": True}, "tokens is True"),
        ({"init": "TXT"}, "init 'TXT' is unknown. Use one of random, vocabulary, text, labels."),
        ({"init": "TEXT", "text": "a"}, "init 'TEXT' is unknown"),
        ({"init": None}, "init None is unknown"),
        ({"init": "text"}, "init='text' needs a text"),
        ({"text": "Which topic?"}, "a text is given, but init is 'vocabulary'"),
        ({"init": "labels", "text": "a"}, "a text is given, but init is 'labels'"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(settings, message):
    with pytest.raises(SettingsError) as refused:
        PromptTuning(**settings)
    assert message in str(refused.value)
    assert refused.value.where in settings or refused.value.where == "text"
