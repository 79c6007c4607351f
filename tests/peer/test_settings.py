"""Settings that were mistyped."""

from __future__ import annotations

import pytest
from peft import get_peft_model

import tiny
from peft_side import config
from softprompt.errors import SettingsError
from softprompt.prompts import PrefixTuning, PromptTuning, PTuning, method_named


@pytest.mark.parametrize("method", [PromptTuning, PTuning, PrefixTuning])
@pytest.mark.parametrize("init", ["txt", "TEXT", "TXT"])
def test_an_unknown_start_is_refused_by_name(method, init):
    with pytest.raises(SettingsError, match=rf"init '{init}' is unknown.*Use one of random, vocabulary, text, labels"):
        method(init=init)


def test_a_text_that_would_not_be_used_is_refused():
    with pytest.raises(SettingsError, match="a text is given, but init is 'vocabulary'"):
        PromptTuning(text="Which topic is this?")


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(SettingsError, match="prompt-tuning has no setting initialise"):
        method_named("prompt-tuning", {"initialise": "text"})


@pytest.mark.peer
def test_peft_trains_a_random_prompt_where_its_start_is_mistyped():
    given = {"prompt_tuning_init": "TXT", "prompt_tuning_init_text": "Topic"}
    model = get_peft_model(tiny.model("llama"), config("prompt", **given))
    embeddings = model.get_prompt(1)[0]
    words = model.get_base_model().get_input_embeddings().weight
    assert not any(bool((row == words).all(dim=1).any()) for row in embeddings)
    # As torch makes an embedding: five times as wide as the words of this model.
    assert embeddings.std() > 3 * words.std()
