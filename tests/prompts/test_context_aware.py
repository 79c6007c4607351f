"""Context-aware prompt tuning: what is learned, how far it may go, what is asked. The model is a table."""

from __future__ import annotations

import math

import pytest
import torch

from softprompt.errors import SettingsError
from softprompt.prompts import ContextAwarePromptTuning
from softprompt.prompts.method import Asked, Host, count
from softprompt.text.worked import WorkedExamples

# Three worked examples; the answer of the second has two tokens.
TOKENS = (3, 10, 11, 4, 20, 9, 3, 12, 4, 21, 22, 9, 3, 13, 4, 20, 9)
KINDS = (
    *("format", "input", "input", "format", "label", "separator"),
    *("format", "input", "format", "label", "label", "separator"),
    *("format", "input", "format", "label", "separator"),
)
ANSWERS = tuple({4: 0, 9: 1, 10: 1, 15: 2}.get(i, -1) for i in range(len(TOKENS)))
WORKED = WorkedExamples(TOKENS, KINDS, ANSWERS, 3)
LEARNED = [i for i, kind in enumerate(KINDS) if kind in ("format", "input")]


def build(width: int = 8, worked: WorkedExamples = WORKED, **settings):
    table = torch.randn(50, width, generator=torch.Generator().manual_seed(0))
    host = Host(50, width, frozenset(), lambda text: [], lambda ids: table[ids], worked=worked)
    method = ContextAwarePromptTuning(**{"examples": worked.examples} | settings)
    return method.build(len(worked), host, torch.Generator().manual_seed(0)), table[list(worked.tokens)]


def shake(made, size: float) -> torch.Tensor:
    """Random changes, of norms around `size`; gives them."""
    with torch.no_grad():
        made.delta.copy_(torch.randn(made.delta.shape, generator=torch.Generator().manual_seed(1)) * size)
    return made.delta.detach().clone()


def bounds(width: int, input_epsilon: float = 0.2, format_epsilon: float = 0.1) -> torch.Tensor:
    epsilons = {"input": input_epsilon, "format": format_epsilon}
    return torch.tensor([epsilons[KINDS[i]] * math.sqrt(width / 2048) for i in LEARNED])


def test_it_starts_at_the_models_own_embeddings():
    made, embeddings = build()
    assert torch.equal(made().embeddings, embeddings)
    assert not bool(made.delta.any())


def test_fields_and_hard_text_are_learned_and_nothing_else():
    made, embeddings = build()
    assert count(list(made.parameters())) == len(LEARNED) * 8
    weights = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(2))
    (made().embeddings * weights).sum().backward()
    assert torch.equal(made.delta.grad, weights[LEARNED])
    delta = shake(made, 5.0)
    wanted = embeddings.clone()
    wanted[LEARNED] += delta
    assert torch.equal(made().embeddings, wanted)


@pytest.mark.parametrize("width", [8, 2048])
@pytest.mark.parametrize("epsilons", [(0.2, 0.1), (0.05, 0.3), (0.1, 0.0)])
def test_a_change_is_projected_to_the_bound_of_its_kind(width, epsilons):
    made, _ = build(width, input_epsilon=epsilons[0], format_epsilon=epsilons[1])
    before = shake(made, 5.0)
    made.after_step()
    found, wanted = made.delta.norm(dim=1), bounds(width, *epsilons)
    assert bool((found <= wanted).all())
    torch.testing.assert_close(found, wanted, rtol=3e-6, atol=0)
    torch.testing.assert_close(made.delta.detach(), before * (wanted / before.norm(dim=1))[:, None], rtol=1e-5, atol=0)


def test_the_bound_at_width_2048_is_epsilon():
    made, _ = build(2048)
    assert sorted(set(made.bounds.flatten().tolist())) == pytest.approx([0.1, 0.2])


def test_a_change_within_its_bound_stays_as_it_is():
    made, _ = build()
    before = shake(made, 1e-4)
    made.after_step()
    assert torch.equal(made.delta, before)


def test_what_was_projected_is_not_projected_again():
    made, _ = build(576)
    shake(made, 1.0)
    made.after_step()
    once = made.delta.detach().clone()
    made.after_step()
    assert torch.equal(made.delta, once)


@pytest.mark.parametrize("size", [1e25, 1e30])
def test_a_change_whose_square_is_no_number_is_projected_as_well(size):
    made, _ = build()
    shake(made, size)
    made.after_step()
    torch.testing.assert_close(made.delta.norm(dim=1), bounds(8), rtol=3e-6, atol=0)


def test_a_change_that_is_no_number_is_left_to_be_seen():
    made, _ = build()
    with torch.no_grad():
        made.delta[0, 0] = math.nan
    made.after_step()
    assert not bool(torch.isfinite(made.delta).all())


def test_each_answer_is_asked_with_gamma_to_the_power_of_its_distance_from_the_end():
    made, _ = build(gamma=0.5)
    # The last worked example is one away from the row; the two tokens of the second's answer share its weight.
    assert made.asked() == (
        Asked(3, 20, 0.125),
        Asked(8, 21, 0.125),
        Asked(9, 22, 0.125),
        Asked(14, 20, 0.5),
    )


def test_without_decay_every_answer_counts_as_much_as_the_rows():
    made, _ = build(gamma=1)
    assert [a.weight for a in made.asked()] == [1, 0.5, 0.5, 1]


def test_gamma_zero_asks_for_the_row_alone():
    assert build(gamma=0)[0].asked() == ()


def test_an_answer_that_nothing_stands_before_is_not_asked():
    worked = WorkedExamples((20, 9, 21, 9), ("label", "separator") * 2, (0, -1, 1, -1), 2)
    made, embeddings = build(worked=worked, gamma=0.5)
    assert made.asked() == (Asked(1, 21, 0.5),)
    assert torch.equal(made().embeddings, embeddings)
    made.after_step()


def test_reading_a_prompt_changes_nothing_of_it():
    made, _ = build()
    shake(made, 0.01)
    tensors = dict(made.named_parameters()) | dict(made.named_buffers())
    versions, asked = {name: t._version for name, t in tensors.items()}, made.asked()
    first = made().embeddings
    first.sum().backward()
    assert torch.equal(made().embeddings, first)
    assert made.asked() == asked
    assert {name: t._version for name, t in tensors.items()} == versions


def test_a_saved_state_in_a_live_prompt_is_that_prompt():
    made, _ = build()
    shake(made, 0.01)
    live, _ = build()
    shake(live, 0.7)
    wanted = made().embeddings.clone()
    for _ in range(2):
        live.load_state_dict(made.state_dict())
        assert torch.equal(live().embeddings, wanted)


def test_a_saved_state_holds_its_worked_examples():
    made, _ = build()
    assert set(made.state_dict()) == {"delta", "tokens", "kinds", "answers"}
    assert ContextAwarePromptTuning(examples=3).worked_in(made.state_dict()) == WORKED


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"examples": 0}, "examples is 0"),
        ({"examples": 2.5}, "examples is 2.5"),
        ({"examples": True}, "examples is True"),
        ({"examples": None}, "examples is None"),
        ({"example_length": 0}, "example_length is 0"),
        ({"example_length": "9"}, "example_length is '9'"),
        ({"gamma": 1.5}, "gamma is 1.5. Give a number from 0 to 1."),
        ({"gamma": -0.1}, "gamma is -0.1"),
        ({"gamma": "much"}, "gamma is 'much'"),
        ({"gamma": math.nan}, "gamma is nan"),
        ({"input_epsilon": -1}, "input_epsilon is -1"),
        ({"format_epsilon": math.inf}, "format_epsilon is inf"),
        ({"format_epsilon": True}, "format_epsilon is True"),
        ({"input_epsilon": 0, "format_epsilon": 0}, "are 0, so nothing may change"),
        ({"separator": 3}, "separator is 3. Give a text."),
        ({"order": "random"}, "order 'random' is unknown. Use one of drawn, rounds, rows."),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingsError) as refused:
        ContextAwarePromptTuning(**settings)
    assert message in str(refused.value)
    assert refused.value.where in settings
