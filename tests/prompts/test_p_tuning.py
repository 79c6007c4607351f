"""P-tuning: shapes of the paper, where it starts, what is kept."""

from __future__ import annotations

import pytest
import torch

from softprompt.errors import SettingsError
from softprompt.prompts import PTuning
from softprompt.prompts.method import Host, count

WIDTH = 6


def host() -> Host:
    table = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1))
    return Host(50, WIDTH, frozenset(), lambda text: [len(w) for w in text.split()], lambda ids: table[ids])


def build(seed: int = 0, tokens: int = 4, **settings):
    return PTuning(**settings).build(tokens, host(), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("encoder", ["lstm", "mlp", "none"])
def test_it_starts_at_the_words_of_its_init(encoder):
    made = build(encoder=encoder, init="text", text="a bb ccc")
    torch.testing.assert_close(made().embeddings, host().embed(torch.tensor([1, 2, 3, 1])))


@pytest.mark.parametrize(("encoder", "expected"), [("lstm", True), ("mlp", True), ("none", False)])
def test_without_a_residual_the_encoder_alone_writes_the_prompt(encoder, expected):
    made = build(encoder=encoder, residual=False)
    assert (not torch.equal(made().embeddings, made.inputs)) == expected


def test_the_lstm_is_the_papers():
    # Two layers, both ways, D/2 each; then D to D twice; and P inputs.
    half, layers = WIDTH // 2, 2
    lstm = layers * 2 * (4 * half * WIDTH + 4 * half * half + 8 * half)
    linear = 2 * (WIDTH * WIDTH + WIDTH)
    assert count(list(build().parameters())) == 4 * WIDTH + lstm + linear


def test_virtual_tokens_know_of_each_other_through_the_lstm():
    made = build(residual=False)
    before = made().embeddings.detach()
    with torch.no_grad():
        made.inputs[0] += 1
    assert not torch.equal(made().embeddings[-1], before[-1])


def test_the_same_seed_gives_the_same_start_and_the_global_generator_goes_on():
    state = torch.get_rng_state()
    assert torch.equal(build(residual=False)().embeddings, build(residual=False)().embeddings)
    assert not torch.equal(build(residual=False)().embeddings, build(1, residual=False)().embeddings)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_parameter_gets_a_gradient_after_the_first_step():
    made = build()
    with torch.no_grad():
        made.encoder.last.weight.add_(0.1)
    made().embeddings.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in made.parameters())


def test_an_unknown_encoder_is_refused():
    with pytest.raises(SettingsError, match="encoder 'gru' is unknown"):
        PTuning(encoder="gru")
