"""What a row is answered is the same in any batch, for every kind of task and of backbone."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import reference
import toys
from reference import assert_close
from softprompt.errors import SourceError
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.run.score import head_outputs, label_log_probabilities, label_odds, row_vectors
from softprompt.text.task import Task

FAMILIES = ("llama", "gpt2", "bert", "roberta", "modernbert", "t5", "bart")
ROWS = [*toys.ROWS, {"text": "x", "label": "sports"}]


def asked(family: str, kind: str, *, seed: int = 0, soft: str = "{soft:4}"):
    """A forward, the examples, a random prompt."""
    backbone = reference.backbone(family)
    prompt = toys.prompt(backbone, toys.task_of(kind, backbone, soft=soft), seed=seed)
    examples = [example_maker(backbone, prompt.task)(toys.answered(kind, row)) for row in ROWS]
    return Forward(backbone), examples, prompt


def answers(forward, examples, prompts, which):
    """By whatever answers the kind of task: one tensor a row."""
    fillings, kind = [Filling(p.values) for p in prompts], prompts[0].task.kind
    own = [prompts[k] for k in which]
    if kind in toys.HEADED:
        return head_outputs(forward, examples, [p.head for p in own], fillings, which)
    if kind == "feature-extraction":
        return list(row_vectors(forward, examples, fillings, which))
    verbalizers = [example_maker(forward.backbone, p.task).verbalizer for p in own]
    of = label_odds if kind == "multi-label" else label_log_probabilities
    return of(forward, examples, verbalizers, fillings, which)


@pytest.mark.parametrize(("family", "kind"), [p for p in toys.pairs(*FAMILIES) if p[1] != "generation"])
@torch.no_grad()
def test_a_batch_of_two_prompts_is_answered_as_each_row_alone(family, kind):
    forward, some, one = asked(family, kind, seed=1)
    _, others, two = asked(family, kind, seed=2, soft="{soft:2}")
    examples, which = [e for pair in zip(some, others, strict=True) for e in pair], [0, 1] * len(some)
    together = answers(forward, examples, [one, two], which)
    for example, k, found in zip(examples, which, together, strict=True):
        (alone,) = answers(forward, [example], [(one, two)[k]], [0])
        assert found.dtype == torch.float32
        assert_close(found, alone)
    differ = [not torch.allclose(together[i], together[i + 1]) for i in range(0, len(examples), 2)]
    assert all(differ), "each prompt has its say"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", toys.HEADED)
@torch.no_grad()
def test_a_head_makes_its_outputs_of_the_states_that_are_read(family, kind):
    forward, examples, prompt = asked(family, kind)
    filling = Filling(prompt.values)
    for example, outputs in zip(examples, answers(forward, examples, [prompt], [0] * len(examples)), strict=True):
        states = forward.answers([example], [filling], head=False).states[0]
        count = 1 if example.reads is None else len(example.reads)
        assert outputs.shape == (count, 2)
        assert_close(outputs, states[-count:] @ prompt.head.weight.T + prompt.head.bias)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
@torch.no_grad()
def test_odds_are_those_of_each_word_against_the_word_for_none(family):
    forward, examples, prompt = asked(family, "multi-label")
    verbalizer = example_maker(forward.backbone, prompt.task).verbalizer
    for example, odds in zip(examples, answers(forward, examples, [prompt], [0] * len(examples)), strict=True):
        logits = forward.answers([example], [Filling(prompt.values)]).logits[0, -1]
        wanted = [float(logits[word[0]] - logits[verbalizer.none[0]]) for word in verbalizer.words]
        assert odds.tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
@torch.no_grad()
def test_a_vector_is_the_mean_of_the_states_that_are_read(family):
    forward, examples, prompt = asked(family, "feature-extraction")
    for example, vector in zip(examples, answers(forward, examples, [prompt], [0] * len(examples)), strict=True):
        states = forward.answers([example], [Filling(prompt.values)], head=False).states[0]
        assert_close(vector, states[-len(example.reads) :].mean(dim=0))


@pytest.mark.parametrize("family", ["llama", "bert"])
@torch.no_grad()
def test_tasks_of_two_kinds_are_read_in_one_batch(family):
    """As rows of several tasks stand in one step."""
    forward, tags, prompt = asked(family, "token-classification", seed=1)
    _, words, other = asked(family, "classification", seed=2)
    fillings = [Filling(prompt.values), Filling(other.values)]
    which = [0] * len(tags) + [1] * len(words)
    mixed = forward.answers([*tags, *words], fillings, which)
    for i, (example, k) in enumerate(zip([*tags, *words], which, strict=True)):
        alone = forward.answers([example], [fillings[k]])
        assert_close(mixed.logits[i, -alone.logits.shape[1] :], alone.logits[0])


@pytest.mark.parametrize("kind", ["classification", "multi-label"])
@pytest.mark.parametrize("template", ["Topic: {mask}. {text}", "{text}. Topic: {label}"])
def test_what_has_no_language_modelling_head_answers_nothing_in_words(minilm, kind, template):
    with pytest.raises(SourceError, match=rf"minilm: it has no language modelling head.*{kind} in words.*sequence-cl"):
        example_maker(minilm, Task(template, {"a": "sport", "b": "money"}, kind=kind))
    # What it advises works.
    made = example_maker(minilm, Task("{text}", ["a", "b"], kind="sequence-classification"))
    assert made({"text": "x", "label": "a"}).label == 0


@torch.no_grad()
def test_real_vectors_of_the_encoder_are_its_mean_states(minilm):
    task = Task("{text}", kind="feature-extraction")
    texts = ["the team won the match", "our side won the game", "shares fell sharply in London on Monday"]
    maker = example_maker(minilm, task)
    prompt = toys.prompt(minilm, task)
    examples = [maker({"text": text}, answered=False) for text in texts]
    found = row_vectors(Forward(minilm), examples, [Filling(prompt.values)])
    for text, vector in zip(texts, found, strict=True):
        states = minilm.model(**minilm.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert_close(vector, states.mean(dim=0), 1e-4)
    likeness = F.normalize(found, dim=-1) @ F.normalize(found, dim=-1).T
    assert likeness[0, 1] > 2 * likeness[0, 2]
