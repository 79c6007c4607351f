"""A prefix stands before every row, inside the attention."""

from __future__ import annotations

import pytest
import torch

import reference
import tiny
from softprompt.errors import SourceError, TemplateError
from softprompt.prompts import PrefixTuning
from softprompt.prompts.method import resolve_task
from softprompt.prompts.prompt import Prefix
from softprompt.run.forward import Filling, Forward
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task

TOKENS = 2
ROWS = [{"text": "x", "label": "a"}, {"text": "he", "label": "b"}]


def examples(backbone, template: str, rows=ROWS):
    task = resolve_task(Task(template), PrefixTuning(tokens=TOKENS))
    return ExampleMaker(task, backbone.tokenizer).all(rows)


def of_tokens(backbone, embeddings: torch.Tensor) -> Prefix:
    keys, values = backbone.attended(embeddings)
    return Prefix(tuple(backbone.site_shapes), keys, values)


def random_embeddings(backbone, seed: int = 0) -> torch.Tensor:
    return torch.randn(TOKENS, backbone.hidden_size, generator=torch.Generator().manual_seed(seed)) * 0.2


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("template", ["{soft}{text}{label}", "{text}{label}", "{soft}T{text}{label}"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_keys_and_values_of_tokens_do_what_the_tokens_would(family, template, share):
    # Rows are shorter than every window, so that the tokens are seen from everywhere, too.
    backbone = reference.backbone(family)
    embeddings = random_embeddings(backbone)
    asked = examples(backbone, template)
    assert max(len(e.tokens) + len(e.target) - 1 for e in asked) <= 6
    logits, _ = Forward(backbone, share=share)(asked, [Filling(of_tokens(backbone, embeddings))])
    for got, example in zip(logits, asked, strict=True):
        wanted = reference.logits(reference.plain(family), example, embeddings)
        torch.testing.assert_close(got[-len(wanted) :], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_it_is_seen_past_the_window(family):
    backbone = reference.backbone(family)
    asked = examples(
        backbone, "{text}{label}", [{"text": "the team won the match, and the market fell " * 2, "label": "a"}]
    )
    logits = [
        Forward(backbone)(asked, [Filling(of_tokens(backbone, random_embeddings(backbone, seed)))])[0]
        for seed in (0, 1)
    ]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_key_and_value_gets_the_gradient_of_all_rows(family):
    backbone = reference.backbone(family)
    asked = examples(backbone, "{text}{label}")

    def gradients(rows):
        prefix = of_tokens(backbone, random_embeddings(backbone))
        leaves = [t.clone().requires_grad_() for t in (*prefix.keys, *prefix.values)]
        half = len(leaves) // 2
        filling = Filling(Prefix(prefix.sites, tuple(leaves[:half]), tuple(leaves[half:])))
        logits, targets = Forward(backbone)(rows, [filling])
        kept = logits.gather(-1, targets.clamp_min(0)[..., None])[..., 0][targets >= 0]
        return torch.autograd.grad(kept.sum(), leaves)

    together, alone = gradients(asked), [gradients([e]) for e in asked]
    for i, gradient in enumerate(together):
        assert bool((gradient.flatten(1) != 0).any(dim=1).all())
        torch.testing.assert_close(gradient, sum(a[i] for a in alone), rtol=1e-4, atol=1e-6)


def test_the_prefix_stands_before_the_beginning_of_text():
    task = resolve_task(Task("Article: {text}{label}"), PrefixTuning(tokens=3))
    assert task.template.source == "{soft:3}{bos}Article: {text}{label}"


@pytest.mark.parametrize("template", ["{text}{soft}{label}", "{soft}{text}{soft}{label}", "a{soft}{text}{label}"])
def test_a_slot_elsewhere_is_refused(template):
    with pytest.raises(TemplateError, match="stands before everything else, in one slot"):
        resolve_task(Task(template), PrefixTuning())


def test_a_row_with_nothing_behind_it_is_refused():
    backbone = reference.backbone("llama")
    asked = examples(backbone, "{text}{label}", [{"text": "", "label": "a"}])
    with pytest.raises(TemplateError, match="a row must have a token behind it"):
        Forward(backbone)(asked, [Filling(of_tokens(backbone, random_embeddings(backbone)))])


def test_a_model_off_the_registry_is_refused():
    backbone = reference.backbone("llama")
    prefix = of_tokens(backbone, random_embeddings(backbone))
    bloom = reference.backbone("bloom")
    with pytest.raises(SourceError, match="Use prompt-tuning"):
        Forward(bloom)(examples(bloom, "{text}{label}"), [Filling(prefix)])
