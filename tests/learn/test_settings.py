from __future__ import annotations

import json

import pytest

from softprompt.errors import SettingsError
from softprompt.learn.settings import MAX_SEED, Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("eval_every", 0),
        ("eval_batch_size", -1),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", 1e38),
        ("max_grad_norm", 0),
        ("weight_decay", -0.1),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("cache_bytes", -1),
        ("warmup", 1),
        ("warmup", -0.1),
        ("schedule", "exponential"),
        ("loss", "hinge"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(SettingsError) as refusal:
        Settings(**{name: value})
    assert refusal.value.where == name
    assert str(value) in str(refusal.value)


def test_settings_survive_json():
    settings = Settings(steps=7, learning_rate=0.25, seed=MAX_SEED)
    assert Settings(**json.loads(json.dumps(settings.facts()))) == settings
