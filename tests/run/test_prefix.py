"""A prefix stands before every row, inside the attention."""

from __future__ import annotations

import pytest
import torch

import reference
import tiny
import toys
from softprompt.answer.engine import Engine
from softprompt.errors import LengthError, SourceError, TemplateError
from softprompt.learn.evaluation import evaluate
from softprompt.prompts import PrefixTuning
from softprompt.prompts.method import resolve_task
from softprompt.prompts.prompt import Prefix
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
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


FULL = {"text": "the market fell" * 200, "label": "sports"}


def longest(backbone, *, inside: bool, tokens: int = TOKENS):
    """An example of a row that is far too long."""
    task = Task("{text}", toys.LABELS, kind="sequence-classification")
    return example_maker(backbone, resolve_task(task, PrefixTuning(tokens=tokens)), inside=inside)(FULL)


@pytest.mark.parametrize("family", [*tiny.ENCODERS, "bart"])
@torch.no_grad()
def test_it_takes_no_position_of_a_row_that_is_not_a_decoders(family):
    backbone, model = reference.backbone(family), tiny.model(family)
    prefix = reference.random_prefix(backbone, TOKENS)
    example = longest(backbone, inside=True)
    assert len(example.tokens) == backbone.positions + TOKENS
    assert example.cut == longest(backbone, inside=False).cut - TOKENS
    # With one more it could not be run.
    answers = Forward(backbone).answers([example], [Filling(prefix)], head=False)
    if backbone.kind == "encoder":
        with reference.prefixed(model, prefix):
            states, _ = reference.answer(model, backbone, example)
        reference.assert_close(answers.states[0], states)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_takes_its_positions_of_a_decoders_row(family):
    backbone = reference.backbone(family)
    assert longest(backbone, inside=True) == longest(backbone, inside=False)
    assert len(longest(backbone, inside=True).tokens) == backbone.positions


def test_what_is_asked_for_bounds_a_row_all_the_same():
    backbone = reference.backbone("bert")
    task = Task("{text}", toys.LABELS, kind="sequence-classification", max_length=20)
    maker = example_maker(backbone, resolve_task(task, PrefixTuning(tokens=TOKENS)), inside=True)
    assert len(maker(FULL).tokens) == 20


def test_a_long_row_is_learned_measured_and_answered_alike():
    backbone = reference.backbone("bert")
    task = Task("{text}", toys.LABELS, kind="sequence-classification")
    ids = backbone.tokenizer(FULL["text"], add_special_tokens=False)["input_ids"]
    text = backbone.tokenizer.decode(ids[: backbone.positions - 2])
    assert len(backbone.tokenizer(text)["input_ids"]) == backbone.positions
    rows = [{"text": text, "label": "sports"}, {"text": "x", "label": "business"}]
    prefix, plain = (
        toys.learn(backbone, task, rows, rows, method, steps=1) for method in (PrefixTuning(tokens=TOKENS), None)
    )
    for rows_cut in ("training_rows_cut", "evaluation_rows_cut"):
        assert (prefix.prompt.training[rows_cut], plain.prompt.training[rows_cut]) == (0, 1)
    metrics = evaluate(backbone, prefix.prompt, rows, progress=False)
    assert metrics["rows_cut"] == 0
    assert metrics["loss"] == pytest.approx(prefix.metrics["loss"], rel=1e-5)
    engine = Engine(backbone)
    engine.add("p", prefix.prompt)
    assert engine.classify([("p", {"text": text})])[0].cut == 0


def test_a_prefix_longer_than_an_encoder_has_positions_leaves_its_row_whole():
    backbone = reference.backbone("bert")
    assert len(longest(backbone, inside=True, tokens=500).tokens) == backbone.positions + 500
    with pytest.raises(LengthError):
        longest(reference.backbone("gpt2"), inside=True, tokens=500)
