"""Prefix tuning: shapes of the paper, where it starts, what is kept."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from softprompt.backbone.attention import route
from softprompt.backbone.sites import probe
from softprompt.errors import SettingsError, SourceError
from softprompt.prompts import PrefixTuning
from softprompt.prompts.method import Host, count
from softprompt.prompts.prefix_tuning import width

# Two sites that differ in everything they may differ in.
SITES = {"a": (2, 3, 3), "b": (1, 4, 2)}


def attend(embeddings: torch.Tensor):
    n = len(embeddings)
    flat = torch.cat([embeddings, 2 * embeddings, 3 * embeddings], dim=1)
    return (flat[:, :6].view(n, 2, 3), flat[:, 6:10].view(n, 1, 4)), (
        flat[:, 10:16].view(n, 2, 3),
        flat[:, 16:18].view(n, 1, 2),
    )


def host(**changes) -> Host:
    table = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    facts = {
        "size": 50,
        "width": 6,
        "special": frozenset(),
        "encode": lambda text: [len(w) for w in text.split()],
        "embed": lambda ids: table[ids],
        "sites": SITES,
        "attend": attend,
    }
    return Host(**(facts | changes))


def build(tokens: int = 4, seed: int = 0, **settings):
    return PrefixTuning(**settings).build(tokens, host(), torch.Generator().manual_seed(seed))


def tensors(prefix):
    return [*prefix.keys, *prefix.values]


def test_it_starts_at_the_keys_and_values_of_real_tokens():
    keys, values = attend(host().embed(torch.tensor([1, 2, 3, 1])))
    for ours, theirs in zip(tensors(build(init="text", text="a bb ccc")()), [*keys, *values], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_mlp_is_fitted_to_them():
    keys, values = attend(host().embed(torch.tensor([1, 2, 3, 1])))
    wanted = torch.cat([t.flatten() for t in (*keys, *values)])
    fitted = build(init="text", text="a bb ccc", projection=True)()
    error = (torch.cat([t.detach().flatten() for t in tensors(fitted)]) - wanted).square().mean()
    assert error < 0.02 * wanted.square().mean()


@pytest.mark.parametrize("projection", [False, True])
def test_zero_is_zero(projection):
    assert not any(bool(t.any()) for t in tensors(build(init="zero", projection=projection)()))


def test_the_mlp_is_the_papers():
    made = build(projection=True, middle=5, init="random")
    assert width(SITES) == 2 * 6 + 6
    assert count(list(made.parameters())) == 4 * 6 + (6 * 5 + 5) + (5 * 18 + 18)


def test_numbers_kept_of_gpt2_medium_are_the_papers():
    # Its configuration, but for what is no part of attention; where it attends is found as in every model.
    config = AutoConfig.for_model("gpt2", n_embd=1024, n_layer=24, n_head=16, n_inner=8, vocab_size=8)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    route(model)
    found, _ = probe(model)
    assert 5 * width({site.name: (site.heads, site.key_width, site.value_width) for site in found}) == 245_760


@pytest.mark.parametrize("projection", [False, True])
def test_the_sink_keeps_its_start_and_the_rest_learns(projection):
    made = build(sink=True, projection=projection, init="text", text="a bb")
    before = [t.detach().clone() for t in tensors(made())]
    optimizer = torch.optim.SGD([p for group in made.groups().values() for p in group], lr=0.1)
    sum(t.square().sum() for t in tensors(made())).backward()
    optimizer.step()
    after = tensors(made())
    keys, _ = attend(host().embed(torch.tensor([1])))
    torch.testing.assert_close(after[0][:1], keys[0])
    assert all(torch.equal(a[0], b[0]) and not torch.equal(a[1:], b[1:]) for a, b in zip(after, before, strict=True))


def test_the_same_seed_gives_the_same_start():
    for settings in ({"init": "random"}, {"init": "random", "projection": True}, {}):
        first, again, other = (build(seed=s, **settings)() for s in (0, 0, 1))
        assert all(map(torch.equal, tensors(first), tensors(again)))
        assert not all(map(torch.equal, tensors(first), tensors(other)))


def test_a_model_whose_attention_cannot_be_reached_is_refused():
    with pytest.raises(SourceError, match=r"its attention cannot be reached.*Use prompt-tuning"):
        PrefixTuning().build(2, host(sites={}, attend=None), torch.Generator())


@pytest.mark.parametrize(("settings", "message"), [({"init": "TXT"}, "init 'TXT'"), ({"middle": 0}, "middle is 0")])
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        PrefixTuning(**settings)
