"""Where virtual tokens start (Lester et al. 2021, section 3.1)."""

from __future__ import annotations

import pytest
import torch

from softprompt.errors import SettingsError
from softprompt.prompts import initialize as starts
from softprompt.prompts.method import Host

TABLE = torch.randn(6000, 16, generator=torch.Generator().manual_seed(7))
SPECIAL = frozenset({0, 3, 4999})
WORDS = {"one": [11], "two words": [21, 22], "of five tokens": [31, 32, 33, 34, 35], "": []}


def vocabulary(*labels: str, size: int = 6000, embed=lambda ids: TABLE[ids]) -> Host:
    return Host(size, 16, SPECIAL, WORDS.__getitem__, embed, tuple(tuple(WORDS[label]) for label in labels))


def start(init: str, tokens: int, known: Host | None = None, *, seed: int = 0, text: str | None = None):
    generator = torch.Generator().manual_seed(seed)
    return starts.initialize(init, tokens, known or vocabulary("one", "two words"), generator, text)


def rows(prompt: torch.Tensor, table: torch.Tensor = TABLE) -> list[int]:
    """Which token each vector is."""
    found = (prompt[:, None] == table[None]).all(dim=-1)
    assert found.any(dim=1).all()
    return found.int().argmax(dim=1).tolist()


INITS = {"random": {}, "vocabulary": {}, "labels": {}, "text": {"text": "of five tokens"}}


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("tokens", [2, 20])
def test_a_start_is_p_float32_vectors_of_its_own(init, tokens):
    table = TABLE.to(torch.bfloat16)
    prompt = start(init, tokens, vocabulary("one", "two words", embed=lambda ids: table[ids]), **INITS[init])
    assert (prompt.shape, prompt.dtype, prompt.requires_grad) == ((tokens, 16), torch.float32, False)
    assert prompt.isfinite().all()


@pytest.mark.parametrize("init", INITS)
def test_the_models_table_is_not_changed_by_training_what_started_from_it(init):
    table = TABLE.clone()
    start(
        init, 5, vocabulary("one", "two words", embed=lambda ids: table[ids[0]].expand(len(ids), -1)), **INITS[init]
    ).zero_()
    assert torch.equal(table, TABLE)


@pytest.mark.parametrize("init", INITS)
def test_the_seed_alone_decides(init):
    torch.manual_seed(1)
    first = start(init, 20, **INITS[init])
    torch.manual_seed(2)
    assert torch.equal(first, start(init, 20, **INITS[init]))
    assert torch.equal(first, start(init, 20, seed=1, **INITS[init])) == (init == "text")


def test_random_is_uniform_between_minus_and_plus_one_half():
    prompt = start("random", 2000)
    assert prompt.min() >= -0.5
    assert prompt.max() <= 0.5
    assert prompt.min() < -0.49
    assert prompt.max() > 0.49
    assert prompt.mean().abs() < 0.01
    assert prompt.std() == pytest.approx(12**-0.5, rel=0.02)


def test_sampled_vocabulary_is_common_tokens_each_once():
    chosen = rows(start("vocabulary", 4000))
    assert len(set(chosen)) == 4000
    assert not SPECIAL & set(chosen)
    # The first 5,000 ids that are not special: three special ones are passed over.
    assert max(chosen) <= 5002
    assert set(rows(start("vocabulary", 5000))) == set(range(5003)) - SPECIAL


def test_sampled_vocabulary_repeats_where_there_are_too_few():
    chosen = rows(start("vocabulary", 60, vocabulary(size=40)))
    assert set(chosen) <= set(range(40)) - SPECIAL
    assert len(chosen) == 60


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(3, [31, 32, 33]), (5, [31, 32, 33, 34, 35]), (12, [31, 32, 33, 34, 35] * 2 + [31, 32])],
)
def test_a_text_is_cut_or_repeated_from_its_beginning(tokens, expected):
    assert rows(start("text", tokens, text="of five tokens")) == expected


def test_labels_are_the_mean_of_their_tokens_and_then_sampled_vocabulary():
    prompt = start("labels", 6, vocabulary("two words", "one", "of five tokens"))
    for vector, tokens in zip(prompt, ([21, 22], [11], [31, 32, 33, 34, 35]), strict=False):
        torch.testing.assert_close(vector, TABLE[tokens].mean(dim=0))
    rest = rows(prompt[3:])
    assert len(set(rest)) == 3
    assert not SPECIAL & set(rest)


def test_labels_may_take_every_token():
    assert rows(start("labels", 1, vocabulary("one"))) == [11]


def test_labels_without_labels_are_refused():
    with pytest.raises(SettingsError, match="init='labels' needs a task with label words") as refused:
        start("labels", 5, vocabulary())
    assert refused.value.where == "init"


def test_more_labels_than_tokens_are_refused():
    with pytest.raises(SettingsError, match="a virtual token for each of the 3 labels, not 2") as refused:
        start("labels", 2, vocabulary("one", "two words", "of five tokens"))
    assert refused.value.where == "tokens"


def test_a_text_without_a_token_is_refused():
    with pytest.raises(SettingsError, match="the init text is empty"):
        start("text", 5, text="")
