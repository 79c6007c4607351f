from __future__ import annotations

from collections import Counter

import pytest
import torch

from softprompt.answer.sampling import Sampler, Sampling
from softprompt.errors import SettingsError

LOGITS = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.08, 0.02]))


def drawn(times: int = 4000, **options) -> Counter[int]:
    sampler = Sampler(Sampling(**{"temperature": 1.0, "seed": 0, **options}))
    return Counter(sampler(LOGITS).id for _ in range(times))


def test_without_temperature_it_is_the_likeliest():
    assert drawn(5, temperature=0.0) == {1: 5}


def test_tokens_are_drawn_as_likely_as_they_are():
    found = drawn()
    for token, likely in enumerate([0.1, 0.5, 0.3, 0.08, 0.02]):
        assert found[token] / 4000 == pytest.approx(likely, abs=0.03)


def test_a_low_temperature_sharpens():
    found = drawn(temperature=0.5)
    sharp = torch.tensor([0.1, 0.5, 0.3, 0.08, 0.02]).square()
    assert found[1] / 4000 == pytest.approx(float(sharp[1] / sharp.sum()), abs=0.03)


@pytest.mark.parametrize(
    ("options", "left"), [({"top_k": 2}, {1, 2}), ({"top_p": 0.85}, {0, 1, 2}), ({"top_p": 0.1}, {1})]
)
def test_only_the_likeliest_are_drawn_from(options, left):
    assert set(drawn(**options)) == left


def test_a_seed_gives_the_same_and_each_of_several_answers_its_own():
    def tokens(seed: int, choice: int = 0) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), choice)
        return [sampler(LOGITS).id for _ in range(30)]

    assert tokens(1) == tokens(1)
    assert len({tuple(t) for t in (tokens(1), tokens(2), tokens(1, 1), tokens(1, 2))}) == 4
    assert tokens(-1) != tokens(2**63 - 1)


def test_no_seed_is_none_twice():
    assert Counter(Sampler(Sampling(temperature=1.0))(LOGITS).id for _ in range(50)).keys() != {1}


def test_log_probabilities_are_the_models_own():
    token = Sampler(Sampling(temperature=0.3, seed=0, logprobs=2))(LOGITS)
    assert token.logprob == pytest.approx(float(LOGITS[token.id]), abs=1e-6)
    assert [i for i, _ in token.top] == [1, 2]
    assert [p for _, p in token.top] == pytest.approx(LOGITS[[1, 2]].tolist(), abs=1e-6)


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_what_was_written_is_penalised(penalty):
    sampler = Sampler(Sampling(**{penalty: 2.0}))
    assert [sampler(LOGITS).id for _ in range(3)] == [1, 2, 0]
    assert float(LOGITS[1]) == pytest.approx(-0.6931, abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"n": 0},
        {"max_new_tokens": 0},
        {"logprobs": 21},
        {"stop": ("",)},
        {"stop": tuple("abcdefghijklmnopq")},
        {"seed": 2**63},
        {"frequency_penalty": 3},
    ],
)
def test_what_is_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(SettingsError) as refused:
        Sampling(**wrong)
    assert refused.value.where in wrong
