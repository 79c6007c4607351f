from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import reference
import tiny
from reference import assert_close
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.run.score import label_log_probabilities
from softprompt.text.examples import Example, ExampleMaker
from softprompt.text.task import Task

# Two labels told apart by their first tokens, two that are not, and one of them in front of its text.
TASKS = (
    Task("Article: {text}{soft:2}\nTopic: {label}", ["sports", "business"]),
    Task("{text}{soft:3}{label}", {"a": "the market fell", "b": "the market won", "c": "the team"}),
    Task("{soft:2}{text}: {label}", {"a": "yes yes", "b": "yes no"}),
)
TEXTS = ("the team won", "x", "the market fell, and fell, and fell")


@pytest.fixture(scope="module")
def asked():
    """A row of every task about every text: examples, verbalizers, prompts, and each row's prompt."""
    backbone = reference.backbone("llama")
    makers = [ExampleMaker(task, backbone.tokenizer) for task in TASKS]
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randn(m.virtual, backbone.hidden_size, generator=generator) * 0.2 for m in makers]
    pairs = [(k, m({"text": text}, answered=False)) for text in TEXTS for k, m in enumerate(makers)]
    which = [k for k, _ in pairs]
    return [e for _, e in pairs], [makers[k].verbalizer for k in which], prompts, which


def wanted(model, example, verbalizer, prompt) -> torch.Tensor:
    """Each word behind the row, by the plain model; only what tells the words apart is scored."""
    words = [word[:1] for word in verbalizer.words] if verbalizer.by_first_token else verbalizer.words
    scores = []
    for word in words:
        logs = reference.logits(model, Example(example.tokens, example.field_at, word), prompt).log_softmax(dim=-1)
        scores.append(sum(logs[i, token] for i, token in enumerate(word)))
    return torch.stack(scores).log_softmax(dim=-1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_mixed_tasks_are_scored_as_each_row_alone(family, asked):
    examples, verbalizers, prompts, which = asked
    assert {v.by_first_token for v in verbalizers} == {True, False}
    fillings = [Filling(VirtualTokens(p)) for p in prompts]
    found = label_log_probabilities(Forward(reference.backbone(family)), examples, verbalizers, fillings, which)
    for scores, example, verbalizer, k in zip(found, examples, verbalizers, which, strict=True):
        assert scores.dtype == torch.float32
        assert_close(scores, wanted(reference.plain(family), example, verbalizer, prompts[k]))
        assert_close(scores.exp().sum(), torch.tensor(1.0))


def test_a_row_is_scored_the_same_alone(asked):
    examples, verbalizers, prompts, which = asked
    forward = Forward(reference.backbone("llama"))
    fillings = [Filling(VirtualTokens(p)) for p in prompts]
    together = label_log_probabilities(forward, examples, verbalizers, fillings, which)
    for scores, example, verbalizer, k in zip(together, examples, verbalizers, which, strict=True):
        (alone,) = label_log_probabilities(forward, [example], [verbalizer], [fillings[k]])
        assert_close(scores, alone)


def test_the_rows_own_answers_are_not_looked_at(asked):
    examples, verbalizers, prompts, which = asked
    forward = Forward(reference.backbone("llama"))
    fillings = [Filling(VirtualTokens(p)) for p in prompts]
    answered = [Example(e.tokens, e.field_at, (7, 8, 9), 0) for e in examples]
    for one, other in zip(
        label_log_probabilities(forward, examples, verbalizers, fillings, which),
        label_log_probabilities(forward, answered, verbalizers, fillings, which),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_where_first_tokens_differ_each_row_is_run_once(asked):
    examples, verbalizers, prompts, which = asked
    backbone = reference.backbone("llama")
    first = [i for i, v in enumerate(verbalizers) if v.by_first_token]
    with reference.inputs_of(backbone.model.get_output_embeddings()) as seen:
        label_log_probabilities(
            Forward(backbone),
            [examples[i] for i in first],
            [verbalizers[i] for i in first],
            [Filling(VirtualTokens(p)) for p in prompts],
            [which[i] for i in first],
        )
    assert [s.shape[:2] for s in seen] == [(len(first), 1)]


@pytest.mark.parametrize("rows", [1, 20])
def test_many_labels_that_share_a_first_token_are_scored_in_portions(rows):
    backbone = reference.backbone("llama")
    maker = ExampleMaker(
        Task("{soft:2}{text}: {label}", {str(i): f"yes {i}" for i in range(10, 40)}), backbone.tokenizer
    )
    assert not maker.verbalizer.by_first_token
    texts = ["the team won" + " the match" * (i % 3) for i in range(rows)]
    examples = [maker({"text": text}, answered=False) for text in texts]
    prompt = torch.randn(maker.virtual, backbone.hidden_size, generator=torch.Generator().manual_seed(0)) * 0.2
    with reference.inputs_of(backbone.model.get_output_embeddings()) as seen:
        found = label_log_probabilities(
            Forward(backbone), examples, [maker.verbalizer] * rows, [Filling(VirtualTokens(prompt))]
        )
    assert max(s.shape[0] for s in seen) <= max(rows, 16)
    assert sum(s.shape[0] for s in seen) == 30 * rows
    for scores, example in list(zip(found, examples, strict=True))[:3]:
        assert_close(scores, wanted(reference.plain("llama"), example, maker.verbalizer, prompt))


# Of each task a prompt of its own: three labels of two or more tokens, two told apart by their first.
WRITTEN = (
    Task("{soft:2}{text}: {label}", {"a": "the market fell", "b": "the market won", "c": "the team"}),
    Task("Article: {text}{soft:3}{label}", ["sports", "business"]),
)


def asked_of(family: str, *, prefix: bool = False):
    """Rows of both tasks: examples, verbalizers, fillings, and each row's prompt."""
    backbone = reference.backbone(family)
    tasks = WRITTEN
    if prefix:
        tasks = (WRITTEN[0].with_template(WRITTEN[0].template.with_start_behind_front_slot()),)
    makers = [example_maker(backbone, task, inside=prefix) for task in tasks]
    generator = torch.Generator().manual_seed(0)
    scale = float(backbone.embeddings.std())
    values = [VirtualTokens(torch.randn(m.virtual, backbone.hidden_size, generator=generator) * scale) for m in makers]
    if prefix:
        # Two prompts before the rows of one task.
        values = [reference.random_prefix(backbone, 2, seed=seed) for seed in (4, 5)]
    pairs = [(k, (makers * 2)[k]) for _ in TEXTS for k in range(2)]
    examples = [m({"text": TEXTS[i // 2]}, answered=False) for i, (_, m) in enumerate(pairs)]
    return examples, [m.verbalizer for _, m in pairs], [Filling(v) for v in values], [k for k, _ in pairs]


def alone_scores(forward, example, verbalizer, filling) -> torch.Tensor:
    """Each word by a pass of its own, the row encoded with it."""
    scores = []
    for word in [w[:1] for w in verbalizer.words] if verbalizer.by_first_token else verbalizer.words:
        logits, _ = forward([replace(example, target=word)], [filling])
        scores.append(sum(logits[0, i].log_softmax(dim=-1)[token] for i, token in enumerate(word)))
    return torch.stack(scores).log_softmax(dim=-1)


@pytest.mark.parametrize("prefix", [False, True], ids=["at the input", "inside"])
@pytest.mark.parametrize("family", tiny.ENCODER_DECODERS)
@torch.no_grad()
def test_a_row_is_encoded_once_whatever_the_number_of_labels(family, prefix):
    examples, verbalizers, fillings, which = asked_of(family, prefix=prefix)
    assert {v.by_first_token for v in verbalizers} == ({False} if prefix else {True, False})
    backbone = reference.backbone(family)
    forward, rows = Forward(backbone), []
    hook = backbone.model.get_encoder().register_forward_hook(
        lambda _, args, kwargs, out: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    try:
        found = label_log_probabilities(forward, examples, verbalizers, fillings, which)
    finally:
        hook.remove()
    assert rows == [len(examples)]
    for scores, example, verbalizer, k in zip(found, examples, verbalizers, which, strict=True):
        assert_close(scores, alone_scores(forward, example, verbalizer, fillings[k]))


@torch.no_grad()
def test_rows_that_each_have_a_prefix_of_their_own_are_encoded_with_it():
    # As many prompts as rows, in their order: nothing says which row reads which.
    examples, verbalizers, fillings, _ = asked_of("t5", prefix=True)
    forward = Forward(reference.backbone("t5"))
    found = label_log_probabilities(forward, examples[:2], verbalizers[:2], fillings, [0, 1])
    for scores, example, verbalizer, filling in zip(found, examples, verbalizers, fillings, strict=False):
        assert_close(scores, alone_scores(forward, example, verbalizer, filling))
