from __future__ import annotations

import pytest
import torch

from softprompt.errors import SettingsError
from softprompt.prompts import METHODS, MultitaskPromptTuning, PromptTuning
from softprompt.prompts.method import Host, count


def host(width: int = 8, labels=((50,), (51, 52))) -> Host:
    """A model that is known by its width alone."""
    table = torch.randn(200, width, generator=torch.Generator().manual_seed(0))
    return Host(200, width, frozenset({0, 1}), lambda text: [ord(c) for c in text], lambda ids: table[ids], labels)


def build(tasks: int = 1, tokens: int = 5, width: int = 8, **settings):
    method = MultitaskPromptTuning(**settings)
    return method.build_for(tasks, tokens, host(width), torch.Generator().manual_seed(0))


def trained(tasks: int, seed: int = 1, **settings):
    """Factors that have gone ways of their own."""
    made = build(tasks, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    return made


def saved(parametrization, task: int) -> dict[str, torch.Tensor]:
    return {name: t.detach().clone() for name, t in parametrization.state_of(task).items()}


def test_the_parameters_of_a_target_are_as_many_as_published():
    """77.6 thousand for T5-base, P = 100: a prompt of 76,800 numbers, and factors of 100 + 768."""
    made = build(1, tokens=100, width=768, init="random")
    assert {name: count(group) for name, group in made.groups().items()} == {"shared": 76_800, "factors": 868}
    assert count(list(made.parameters())) == 77_668


def test_eight_tasks_that_share_take_a_tenth_of_that_each():
    made = build(8, tokens=100, width=768, init="random")
    assert count(list(made.parameters())) / 8 == 10_468


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("init", [{}, {"init": "random"}, {"init": "labels"}, {"init": "text", "text": "abc"}])
def test_every_task_starts_at_the_init_itself(rank, init):
    """PEFT draws both factors from N(0, 0.02^2): their product is about 4e-4, and of the init nothing is left."""
    made = build(3, rank=rank, **init)
    wanted = PromptTuning(**init).build(5, host(), torch.Generator().manual_seed(0))().embeddings
    for task in range(3):
        assert torch.equal(made(task).embeddings, wanted)
        assert torch.equal(made.left[task] @ made.right[task], torch.ones(5, 8))


def test_a_prompt_is_the_shared_one_times_the_sum_of_outer_products():
    made = trained(2, rank=3)
    for task in range(2):
        u, v = made.left[task], made.right[task]
        assert u.shape == (5, 3)
        assert v.shape == (3, 8)
        product = sum(torch.outer(u[:, r], v[r]) for r in range(3))
        torch.testing.assert_close(made(task).embeddings, made.shared * product)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_all_of_the_rank_is_learned(rank):
    """Factors that start alike would be moved alike, and a rank of three would stay one."""
    torch.manual_seed(0)
    wanted = [torch.randn(5, 8) for _ in range(2)]
    made = build(2, rank=rank)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.05)
    for step in range(60):
        optimizer.zero_grad()
        sum(((made(task).embeddings - wanted[task]) ** 2).mean() for task in range(2)).backward()
        assert step == 0 or all(bool((p.grad != 0).any()) for p in made.parameters())
        optimizer.step()
    for task in range(2):
        assert int(torch.linalg.matrix_rank(made.left[task] @ made.right[task])) == rank
    assert not torch.equal(made.left[0], made.left[1])


def test_a_task_without_rows_is_not_moved():
    """Not by the momentum of earlier steps, either."""
    made = build(2)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
    for task in (0, 1):
        optimizer.zero_grad()
        before = saved(made, 0)
        made(task).embeddings.pow(2).sum().backward()
        optimizer.step()
    assert torch.equal(made.left[0], before["left.0"])
    assert torch.equal(made.right[0], before["right.0"])
    assert not torch.equal(made.shared, before["shared"])


def test_factors_have_a_rate_of_their_own():
    made = build(2, factor_rate=2.5)
    assert list(made.groups()) == ["shared", "factors"]
    assert made.rates() == {"factors": 2.5}
    assert build().rates() == {"factors": pytest.approx(0.4 / 0.3)}


@pytest.mark.parametrize("rank", [1, 2])
def test_a_task_is_all_there_is_of_a_prompt_of_its_own(rank):
    made, alone = trained(3, rank=rank), build(1, rank=rank)
    for task in range(3):
        state = saved(made, task)
        assert state.keys() == alone.state_dict().keys()
        alone.begin_from([state])
        assert torch.equal(alone().embeddings, made(task).embeddings)
        assert all(torch.equal(t, state[name]) for name, t in alone.state_dict().items())


def test_a_target_begins_from_the_shared_prompt_and_the_average_of_the_factors():
    made, target = trained(3, rank=2), build(1, rank=2)
    target.begin_from([saved(made, task) for task in range(3)])
    assert torch.equal(target.shared, made.shared)
    torch.testing.assert_close(target.left[0], (made.left[0] + made.left[1] + made.left[2]) / 3)
    torch.testing.assert_close(target.right[0], (made.right[0] + made.right[1] + made.right[2]) / 3)
    # And not from the average of the prompts.
    mean = torch.stack([made(task).embeddings for task in range(3)]).mean(dim=0)
    assert not torch.allclose(target().embeddings, mean)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tokens": 6}, r"its P \(virtual tokens\) is 6, that asked for 5"),
        ({"rank": 2}, "its rank is 2, that asked for 1"),
        ({"width": 9}, r"its D \(width\) is 9, that asked for 8"),
    ],
)
def test_a_start_of_another_shape_is_refused_by_name(other, message):
    target = build()
    before = saved(target, 0)
    with pytest.raises(SettingsError, match=message):
        target.begin_from([saved(build(), 0), saved(build(**other), 0)])
    assert all(torch.equal(t, before[name]) for name, t in target.state_dict().items())


def test_a_start_of_other_parameters_is_refused():
    with pytest.raises(SettingsError, match=r"its parameters is \['embeddings'\]"):
        build().begin_from([{"embeddings": torch.zeros(5, 8)}])


def test_prompts_that_were_not_trained_together_have_no_average():
    with pytest.raises(SettingsError, match="do not share one prompt"):
        build().begin_from([saved(trained(1, seed), 0) for seed in (1, 2)])


def test_other_methods_begin_from_one_prompt():
    one = PromptTuning().build(5, host(), torch.Generator())
    with pytest.raises(SettingsError, match="it takes one prompt, not 2"):
        one.begin_from([one.state_of(), one.state_of()])


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"tokens": 0}, "tokens"),
        ({"rank": 0}, "rank"),
        ({"rank": 1.5}, "rank"),
        ({"rank": True}, "rank"),
        ({"init": "TXT"}, "init"),
        ({"init": "text"}, "text"),
        ({"text": "x"}, "text"),
        ({"factor_rate": 0}, "factor_rate"),
        ({"factor_rate": float("nan")}, "factor_rate"),
        ({"factor_rate": 1e6}, "factor_rate"),
        ({"factor_rate": "1"}, "factor_rate"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, where):
    with pytest.raises(SettingsError) as refused:
        MultitaskPromptTuning(**settings)
    assert refused.value.where == where
    assert refused.value.instead


@pytest.mark.parametrize("name", METHODS)
def test_a_method_shares_if_and_only_if_it_can_be_built_for_several_tasks(name):
    method = METHODS[name]()
    if method.SHARES:
        assert method.build_for(2, 5, host(), torch.Generator())(1).tokens == 5
    else:
        with pytest.raises(SettingsError, match=f"{name} prompts have nothing in common with each other"):
            method.build_for(2, 5, host(), torch.Generator())
