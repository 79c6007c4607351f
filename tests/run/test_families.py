"""Encoders and encoder-decoders against the plain model, one row at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import reference
import tiny
from reference import assert_close, random_prefix
from softprompt.backbone.context import Context
from softprompt.prompts.prompt import Prefix, VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.run.generation import PromptedModel
from softprompt.run.maker import example_maker
from softprompt.text.task import Task
from toys import LABELS, ROWS, answered

ALL = (*tiny.ENCODERS, *tiny.ENCODER_DECODERS)
CLOZE = (
    "{soft:3}Article: {text}\nTopic: {mask}",
    "{text}{soft:2} {mask}{soft:2}",
    "{cls}Topic: {mask}{soft:2}{text}{sep}yes",
)
WRITING = ("{soft:3}Article: {text}\nTopic: {label}", "{text}{soft:2}{label}")
HEADED = {
    "sequence-classification": LABELS,
    "token-classification": LABELS,
    "question-answering": None,
    "feature-extraction": None,
}


def task_of(kind: str, family: str, template: str | None = None) -> Task:
    if kind in HEADED:
        return Task(template or "{soft:3}Article: {text}", HEADED[kind], kind=kind)
    return Task(
        template or (CLOZE[0] if family in tiny.ENCODERS else WRITING[0]), None if kind == "generation" else LABELS
    )


def examples_of(family: str, task: Task, *, prefix: bool = False) -> list:
    if prefix:
        task = task.with_template(task.template.with_start_behind_front_slot())
    maker = example_maker(reference.backbone(family), task)
    return [maker(answered(task.kind, row)) for row in ROWS]


def random_tokens(backbone, examples) -> torch.Tensor:
    virtual = -min(min(e.tokens) for e in examples)
    scale = float(backbone.embeddings.std())
    return torch.randn(virtual, backbone.hidden_size, generator=torch.Generator().manual_seed(3)) * scale


def plain_answer(family: str, example, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    return reference.answer(reference.plain(family), reference.backbone(family), example, prompt)


def assert_rows_equal(family: str, task: Task, values, wanted) -> None:
    """Answers of one batch against those of each row alone."""
    examples = examples_of(family, task)
    answers = Forward(reference.backbone(family)).answers(examples, [Filling(values)])
    for i, example in enumerate(examples):
        states, logits = wanted(example)
        size = len(states)
        assert_close(answers.states[i, -size:], states)
        if logits is not None:
            assert_close(answers.logits[i, -size:], logits)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_a_prompt_in_a_batch_equals_the_sequence(family, number):
    templates = CLOZE if family in tiny.ENCODERS else WRITING
    kind = "classification" if family in tiny.ENCODERS else "generation"
    task = task_of(kind, family, templates[number % len(templates)])
    prompt = random_tokens(reference.backbone(family), examples_of(family, task))
    assert_rows_equal(family, task, VirtualTokens(prompt), lambda e: plain_answer(family, e, prompt))


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("kind", HEADED)
@torch.no_grad()
def test_states_that_a_head_reads_equal_the_sequences(family, kind):
    task = task_of(kind, family)
    prompt = random_tokens(reference.backbone(family), examples_of(family, task))
    assert_rows_equal(family, task, VirtualTokens(prompt), lambda e: plain_answer(family, e, prompt))


@pytest.mark.parametrize("family", [*ALL, "llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("kind", ["classification", "token-classification"])
@torch.no_grad()
def test_a_prefix_is_seen_by_every_attention(family, kind):
    backbone, model = reference.backbone(family), tiny.model(family)
    prefix = random_prefix(backbone)
    examples = examples_of(family, task_of(kind, family), prefix=True)
    answers = Forward(backbone).answers(examples, [Filling(prefix)])
    for i, example in enumerate(examples):
        with reference.prefixed(model, prefix):
            states, logits = reference.answer(model, backbone, example)
        assert_close(answers.states[i, -len(states) :], states)
        if logits is not None:
            assert_close(answers.logits[i, -len(states) :], logits)


@pytest.mark.parametrize("family", ALL)
def test_gradients_are_those_of_the_sequences(family):
    kind = "classification" if family in tiny.ENCODERS else "generation"
    task = task_of(kind, family)
    examples = examples_of(family, task)
    prompt = random_tokens(reference.backbone(family), examples)
    batched, alone = (prompt.clone().requires_grad_() for _ in range(2))
    logits, targets = Forward(reference.backbone(family))(examples, [Filling(VirtualTokens(batched))])
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum").backward()
    for example in examples:
        own = plain_answer(family, example, alone)[1]
        F.cross_entropy(own, torch.tensor(example.target), reduction="sum").backward()
    assert_close(batched.grad, alone.grad)


@pytest.mark.parametrize("family", ALL)
def test_every_key_and_value_of_a_prefix_gets_gradient(family):
    backbone = reference.backbone(family)
    prefix = random_prefix(backbone)
    leaves = [t.requires_grad_() for t in (*prefix.keys, *prefix.values)]
    kind = "classification" if family in tiny.ENCODERS else "generation"
    examples = examples_of(family, task_of(kind, family), prefix=True)
    logits, targets = Forward(backbone)(examples, [Filling(prefix)])
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
    assert all(bool((t.grad.flatten(1).abs().sum(dim=1) > 0).all()) for t in leaves)


@pytest.mark.parametrize("family", tiny.ENCODER_DECODERS)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
@torch.no_grad()
def test_what_is_written_is_what_the_plain_model_writes(family, options):
    backbone, model = reference.backbone(family), reference.plain(family)
    task = task_of("generation", family)
    examples = examples_of(family, task)
    prompt = random_tokens(backbone, examples)
    ready = Forward(backbone).prepare(examples, [Filling(VirtualTokens(prompt))])
    limits = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 1, "pad_token_id": 2}
    written = PromptedModel(backbone, ready.context).write(
        ready.inputs_embeds, ready.mask, ready.rows, **limits, **options
    )
    start = list(backbone.decoder_start)
    for row, example in zip(written.tolist(), examples, strict=True):
        sequence = reference.embeds(model, example.tokens, prompt)
        encoded = model.get_encoder()(inputs_embeds=sequence)
        alone = model.generate(
            encoder_outputs=encoded,
            attention_mask=torch.ones(sequence.shape[:2]).long(),
            decoder_input_ids=torch.tensor([start]),
            **limits,
            **options,
        )[0].tolist()
        assert reference.until_end(row, model) == reference.until_end(alone[len(start) :], model)


@pytest.mark.parametrize("family", tiny.ENCODER_DECODERS)
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
@torch.no_grad()
def test_a_prefix_is_seen_while_writing(family, options):
    backbone, model = reference.backbone(family), tiny.model(family)
    prefix = random_prefix(backbone)
    examples = examples_of(family, task_of("generation", family), prefix=True)
    ready = Forward(backbone).prepare(examples, [Filling(prefix)])
    limits = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 1, "pad_token_id": 2}
    written = PromptedModel(backbone, ready.context).write(
        ready.inputs_embeds, ready.mask, ready.rows, **limits, **options
    )
    start = list(backbone.decoder_start)
    for row, example in zip(written.tolist(), examples, strict=True):
        tokens = torch.tensor([[t for t in example.tokens if t >= 0]])
        with reference.prefixed(model, prefix):
            encoded = model.get_encoder()(input_ids=tokens)
            alone = model.generate(
                encoder_outputs=encoded,
                attention_mask=torch.ones_like(tokens),
                decoder_input_ids=torch.tensor([start]),
                use_cache=False,
                **limits,
                **{k: v for k, v in options.items() if k == "num_beams"},
            )[0].tolist()
        assert reference.until_end(row, model) == reference.until_end(alone[len(start) :], model)


@pytest.mark.parametrize("family", ALL)
def test_taking_it_in_and_calling_it_change_nothing(family):
    backbone = tiny.backbone(family)
    before = reference.state(backbone.model)
    kind = "classification" if family in tiny.ENCODERS else "generation"
    examples = examples_of(family, task_of(kind, family), prefix=True)
    logits, _ = Forward(backbone)(examples, [Filling(random_prefix(backbone))])
    logits.sum()
    assert reference.state(backbone.model) == before
    with reference.failing(reference.last_site(backbone) if family != "albert" else backbone.model.base_model):
        Forward(backbone)(examples, [Filling(random_prefix(backbone))])
    assert reference.state(backbone.model) == before


@pytest.mark.parametrize("family", ["t5", "bart", "bert", "modernbert"])
def test_recomputing_gives_the_same_gradients(family):
    grads = []
    for on in (False, True):
        backbone = tiny.backbone(family, gradient_checkpointing=on)
        prefix = random_prefix(backbone)
        leaves = [t.requires_grad_() for t in (*prefix.keys, *prefix.values)]
        kind = "classification" if family in tiny.ENCODERS else "generation"
        examples = examples_of(family, task_of(kind, family), prefix=True)
        logits, _ = Forward(backbone)(examples, [Filling(prefix)])
        logits.square().sum().backward()
        grads.append([t.grad for t in leaves])
    for one, two in zip(*grads, strict=True):
        assert_close(one, two)


@pytest.mark.parametrize("family", tiny.ENCODER_DECODERS)
@torch.no_grad()
def test_prefixes_of_unequal_lengths_in_a_batch_that_is_not_padded(family):
    backbone = reference.backbone(family)
    prompts, examples = [], []
    for length in (2, 5):
        prompts.append(Filling(random_prefix(backbone, length)))
        task = task_of("classification", family, f"{{soft:{length}}}Article: {{text}}\nTopic: {{label}}")
        examples += examples_of(family, task, prefix=True)[:1]
    assert len({len([t for t in e.tokens if t >= 0]) for e in examples}) == 1
    together = Forward(backbone).answers(examples, prompts, [0, 1])
    for i in (0, 1):
        alone = Forward(backbone).answers([examples[i]], [prompts[i]])
        assert_close(together.logits[i], alone.logits[0])


@torch.no_grad()
def test_two_prefixes_in_one_batch():
    backbone = reference.backbone("t5")
    examples = examples_of("t5", task_of("generation", "t5"), prefix=True)
    prefixes = [random_prefix(backbone), Prefix(*(lambda p: (p.sites, p.values, p.keys))(random_prefix(backbone)))]
    which = [0, 1, 1, 0, 1, 0]
    together = Forward(backbone).answers(examples, [Filling(p) for p in prefixes], which)
    for i, (example, k) in enumerate(zip(examples, which, strict=True)):
        alone = Forward(backbone).answers([example], [Filling(prefixes[k])])
        assert_close(together.logits[i, -len(example.target) :], alone.logits[0])
    assert isinstance(Forward(backbone).prepare(examples, [Filling(p) for p in prefixes], which).context, Context)
