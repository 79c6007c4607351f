"""Context-aware prompt tuning in whole runs: against worked examples that are text, and what PEFT gets wrong."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F

import reference
import tiny
from reference import assert_close
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.backbone.backbone import Backbone
from softprompt.errors import DataError, LabelError, LengthError, SettingsError, SourceError, TemplateError
from softprompt.inspection.measure import inspect
from softprompt.prompts import ContextAwarePromptTuning
from softprompt.run.forward import Filling, Forward
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task
from softprompt.text.worked import KINDS
from toys import LABELS, ROWS, at, learn

TEMPLATE = "Article: {text}\nTopic: {label}"
TASK = Task(TEMPLATE, LABELS)
WRITING = Task(TEMPLATE)
METHOD = ContextAwarePromptTuning(examples=3)


def run(task: Task = TASK, method=METHOD, **options):
    return learn(options.pop("backbone", None) or tiny.backbone(), task, method=method, **options)


def kinds(prompt) -> list[str]:
    return [KINDS[kind] for kind in prompt.state.parameters["kinds"]]


def hard_text(tokenizer, rows, numbers, ending: str = "") -> list[int]:
    """The worked examples as plain text, tokenized as people write it: all at once."""
    text = "".join(TEMPLATE.format(**rows[number - 1]) + ending + "\n\n" for number in numbers)
    return tokenizer(text)["input_ids"]


# What it starts from


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("family", [*tiny.FAMILIES, "bloom"])
def test_it_starts_as_worked_examples_written_as_hard_text(family, share):
    backbone, model = reference.backbone(family), reference.plain(family)
    prompt = run(backbone=backbone, steps=1).prompt
    before = hard_text(backbone.tokenizer, ROWS, prompt.training["worked_rows"])
    assert prompt.task.template.source == f"{{soft:{len(before)}}}{TEMPLATE}"
    assert prompt.state.parameters["tokens"].tolist() == before
    start = type(prompt.values).from_tensors(prompt.state.start)
    examples = ExampleMaker(prompt.task, backbone.tokenizer).all(ROWS)
    logits, _ = Forward(backbone, share=share)(examples, [Filling(start)])
    hard = ExampleMaker(Task(TEMPLATE, LABELS), backbone.tokenizer)
    for got, row in zip(logits, ROWS, strict=True):
        ids = torch.tensor([[*before, *hard(row).tokens]])
        assert_close(got[-1], model(ids, use_cache=False).logits[0, -1])


def test_it_starts_as_hard_text_behind_the_beginning_of_text():
    tokenizer = tiny.tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backbone, model = Backbone(tiny.model("llama"), tokenizer), reference.plain("llama")
    for template, begun in ((TEMPLATE, "{soft:%d}"), ("{bos}" + TEMPLATE, "{bos}{soft:%d}")):
        prompt = run(Task(template, LABELS), backbone=backbone, steps=1).prompt
        before = hard_text(tokenizer, ROWS, prompt.training["worked_rows"])
        assert before[0] == 0
        assert prompt.task.template.source == begun % (len(before) - 1) + TEMPLATE
        start = type(prompt.values).from_tensors(prompt.state.start)
        (example,) = ExampleMaker(prompt.task, tokenizer).all(ROWS[:1])
        logits, _ = Forward(backbone)([example], [Filling(start)])
        query = tokenizer(TEMPLATE.format(text=ROWS[0]["text"], label="").rstrip(), add_special_tokens=False)
        assert_close(logits[0, -1], model(torch.tensor([before + query["input_ids"]])).logits[0, -1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
@pytest.mark.parametrize("loss", ["labels", "vocabulary", "generation"])
def test_the_first_loss_is_the_weighted_mean_over_all_answers(family, loss):
    backbone, model = reference.backbone(family), reference.plain(family)
    settings = {"loss": loss} if loss != "generation" else {}
    task = TASK if settings else WRITING
    method = replace(METHOD, gamma=0.5)
    result = run(task, method, backbone=backbone, steps=1, batch_size=len(ROWS), **settings)
    numbers, tokenizer = result.prompt.training["worked_rows"], backbone.tokenizer
    end = "" if settings else "</s>"
    before = hard_text(tokenizer, ROWS, numbers, end)
    words = [tokenizer(" " + label)["input_ids"][0] for label in LABELS]

    def answer_losses(tokens: list[int], answer: list[int], begin: int) -> torch.Tensor:
        """Of each of an answer's tokens, from the plain model over all the text."""
        logits = model(torch.tensor([tokens])).logits[0, begin - 1 : begin - 1 + len(answer)]
        if loss == "labels":
            return F.cross_entropy(logits[:, words], torch.tensor([words.index(t) for t in answer]), reduction="none")
        return F.cross_entropy(logits, torch.tensor(answer), reduction="none")

    def answer(row) -> list[int]:
        word = tokenizer(" " + row["label"])["input_ids"]
        return word[:1] if settings else [*word, tokenizer.eos_token_id]

    rows = []
    for row in ROWS:
        query = tokenizer(TEMPLATE.format(text=row["text"], label="").rstrip())["input_ids"]
        rows.append(answer_losses([*before, *query, *answer(row)], answer(row), len(before) + len(query)))
    total, weights = torch.cat(rows).mean(), 1.0
    for distance, place in ((3, 0), (2, 1), (1, 2)):
        row = ROWS[numbers[place] - 1]
        so_far = hard_text(tokenizer, ROWS, numbers[:place], end)
        query = tokenizer(TEMPLATE.format(text=row["text"], label="").rstrip())["input_ids"]
        total = total + 0.5**distance * answer_losses(before, answer(row), len(so_far) + len(query)).mean()
        weights += 0.5**distance
    assert result.history[0]["loss"] == pytest.approx(float(total / weights), rel=1e-4)


# What is learned


@pytest.mark.parametrize("task", [TASK, WRITING], ids=["classification", "generation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_and_separators_stay_the_models_own_to_the_last_bit(task, dtype):
    backbone = Backbone(tiny.model("llama").to(dtype), tiny.tokenizer())
    prompt = run(task, backbone=backbone, steps=12, learning_rate=0.05).prompt
    own = backbone.embed(prompt.state.parameters["tokens"]).float()
    frozen = torch.tensor([kind in ("label", "separator") for kind in kinds(prompt)])
    assert int(frozen.sum()) >= 6
    assert torch.equal(prompt.values.embeddings[frozen], own[frozen])
    assert bool((prompt.values.embeddings[~frozen] != own[~frozen]).any(dim=1).all())
    assert task.classifies or 1 in prompt.state.parameters["tokens"][frozen]


@pytest.mark.parametrize("learning_rate", [0.01, 100.0])
def test_no_step_leaves_the_bounds(learning_rate):
    seen = []
    note = [at("on_step_end", n, lambda m: seen.append(m.parametrization.delta.detach().clone())) for n in range(1, 13)]
    method = replace(METHOD, input_epsilon=0.3, format_epsilon=0.05)
    prompt = run(method=method, steps=12, learning_rate=learning_rate, callbacks=note).prompt
    bounds = {"input": 0.3 * math.sqrt(32 / 2048), "format": 0.05 * math.sqrt(32 / 2048)}
    wanted = torch.tensor([bounds[kind] for kind in kinds(prompt) if kind in bounds])
    assert len(seen) == 12
    norms = torch.stack(seen).norm(dim=-1)
    assert bool((norms <= wanted).all())
    assert bool((norms > 0.99 * wanted).any(dim=0).all()), "every one of them is reached"
    drift = (prompt.values.embeddings - prompt.state.start["embeddings"]).norm(dim=1)
    assert torch.allclose(drift[drift > 0], norms[-1], rtol=1e-3)


def test_it_learns():
    rows = [{"text": text, "label": LABELS[i % 2]} for i, text in enumerate(("won", "fell", "match", "market") * 2)]
    far = ContextAwarePromptTuning(examples=4, input_epsilon=20, format_epsilon=20)
    losses = [e["loss"] for e in run(method=far, rows=rows, steps=30, learning_rate=0.05).history if "loss" in e]
    assert losses[-1] < 0.5 * losses[0]


# Which rows


def test_the_run_says_which_rows_became_worked_examples():
    prompt = run(steps=1).prompt
    numbers = prompt.training["worked_rows"]
    assert len(set(numbers)) == 3
    assert {ROWS[n - 1]["label"] for n in numbers} == set(LABELS)
    assert prompt.training["worked_tokens"] == prompt.values.tokens == len(kinds(prompt))
    assert prompt.training["training_rows"] == len(ROWS)
    again, other = run(steps=1).prompt, [run(steps=1, seed=seed).prompt.training["worked_rows"] for seed in range(1, 6)]
    assert again.training["worked_rows"] == numbers
    assert [o for o in other if o != numbers]


def test_the_callers_rows_and_settings_are_not_changed():
    rows = [MappingProxyType(dict(row)) for row in ROWS]
    before, method = copy.deepcopy(ROWS), replace(METHOD)
    run(rows=rows, method=method)
    assert [dict(row) for row in rows] == before
    assert method == METHOD


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": ROWS[:2]}, DataError, "3 worked examples are asked for, but there are 2 rows"),
        ({"rows": [*ROWS, {"text": "x", "label": "tech"}]}, LabelError, "row 7: unknown label 'tech'"),
        ({"method": replace(METHOD, examples=6)}, LengthError, "but only 128 are allowed. Lower examples or"),
        ({"task": Task(TEMPLATE, LABELS, max_length=50)}, LengthError, "or raise max_length"),
        ({"task": Task("{text}{soft}{label}", LABELS)}, TemplateError, "stands before everything else, in one slot"),
        ({"task": Task("{soft}{text}{soft}{label}", LABELS)}, TemplateError, "before everything else, in one slot"),
        ({"task": Task("{soft}{label}", LABELS)}, TemplateError, "nothing behind the slot to attend to it"),
        ({"task": Task("{soft:9}" + TEMPLATE, LABELS)}, TemplateError, "has 9 virtual tokens, but the worked examples"),
    ],
)
def test_what_cannot_be_is_refused(options, error, message):
    if options.get("method"):
        options = options | {"rows": [{**row, "text": row["text"] * 3} for row in ROWS]}
    with pytest.raises(error) as refused:
        run(**options)
    assert message in str(refused.value)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_it_is_for_decoders(family):
    backbone = reference.backbone(family)
    with pytest.raises(SourceError, match=rf"context-aware prompt is for a decoder, and this is an {backbone.kind}"):
        run(backbone=backbone)


def test_a_template_that_was_saved_is_taken_again():
    first = run(steps=1).prompt
    assert run(first.task, steps=1).prompt.task == first.task


# Beginning from a saved prompt


def test_a_run_goes_on_with_the_worked_examples_it_begins_from():
    first = run(learning_rate=0.01).prompt
    rows = [{"text": "quite other rows", "label": label} for label in LABELS * 2]
    second = run(rows=rows, seed=7, start=first, steps=3, learning_rate=0.01).prompt
    assert torch.equal(second.state.parameters["tokens"], first.state.parameters["tokens"])
    assert torch.equal(second.state.start["embeddings"], first.values.embeddings)
    assert second.training["worked_rows"] is None
    assert second.training["worked_tokens"] == first.values.tokens
    frozen = torch.tensor([kind in ("label", "separator") for kind in kinds(first)])
    moved = (second.values.embeddings != first.values.embeddings).any(dim=1)
    assert torch.equal(moved, ~frozen)


def test_a_narrower_bound_holds_from_the_start():
    first = run(learning_rate=0.05).prompt
    narrow = replace(METHOD, input_epsilon=0.02, format_epsilon=0.01)
    second = run(method=narrow, start=first, steps=1, learning_rate=1e-12).prompt
    own = tiny.backbone().embed(first.state.parameters["tokens"])
    start = (second.state.start["embeddings"] - own).norm(dim=1)
    assert float(start.max()) <= 0.02 * math.sqrt(32 / 2048) * (1 + 1e-4)
    assert float(start.max()) > 0.019 * math.sqrt(32 / 2048)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": replace(METHOD, examples=2)}, "its worked examples were made by"),
        ({"method": replace(METHOD, separator="\n")}, "Give the settings that it was trained with"),
        ({"task": Task("Text: {text}\nTopic: {label}", LABELS)}, "its worked examples are for the template"),
        ({"task": Task(TEMPLATE, ["won", "fell"]), "rows": [{"text": "a", "label": "won"}]}, "label words ['sports'"),
    ],
)
def test_worked_examples_for_another_task_are_not_begun_from(options, message):
    first = run(steps=1).prompt
    with pytest.raises(SettingsError) as refused:
        run(start=first, **options)
    assert message in str(refused.value)


# What it costs


@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_the_worked_examples_are_computed_once_per_step_in_one_pass(batch_size):
    backbone = tiny.backbone()
    rows = [{"text": text, "label": LABELS[i % 2]} for i, text in enumerate(("won", "fell", "the") * 2)]
    with reference.inputs_of(reference.first_site(backbone)) as seen:
        prompt = run(backbone=backbone, rows=rows, steps=4, batch_size=batch_size).prompt
    example = ExampleMaker(prompt.task, backbone.tokenizer)(rows[0])
    shared = example.field_at
    assert shared > prompt.values.tokens
    # Two passes a step: what stands before all rows, and the rows.
    assert [tuple(s.shape[:2]) for s in seen] == [(1, shared), (batch_size, len(example.tokens) - shared)] * 4


def test_only_answers_go_through_the_head():
    backbone = tiny.backbone()
    with reference.inputs_of(backbone.model.get_output_embeddings()) as read:
        run(backbone=backbone, steps=2, batch_size=4)
    # One token of each of three worked examples, and of each of four rows.
    assert [tuple(s.shape[:2]) for s in read] == [(1, 3), (4, 1)] * 2


# What PEFT gets wrong


def test_a_second_step_asks_what_the_first_asked():
    backbone, seen = tiny.backbone(), []

    def note(model):
        made = model.parametrization
        seen.append((made.asked(), *(made.state_dict()[name].tolist() for name in ("tokens", "kinds", "answers"))))

    run(backbone=backbone, steps=3, callbacks=[at("on_step_end", n, note) for n in (1, 2, 3)])
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("names", [("default", "other"), ("topic of 2024", "default")])
def test_a_change_counts_once_whatever_the_prompt_is_called_and_wherever_it_is_loaded(tmp_path, names):
    backbone = tiny.backbone()
    first, second = (
        run(backbone=backbone, seed=seed, learning_rate=0.02, output=tmp_path / str(seed)) for seed in (1, 2)
    )
    prompt = artifact.load(first.path, backbone, training=True)
    own = backbone.embed(prompt.state.parameters["tokens"])
    own[[kind in ("input", "format") for kind in kinds(prompt)]] += prompt.state.parameters["delta"]
    assert torch.equal(prompt.values.embeddings, own)

    requests = [(name, row) for row in ROWS for name in names]
    engine = Engine(backbone)
    for name, result in zip(names, (first, second), strict=True):
        engine.add(name, result.path)
    answers = engine.classify(requests)
    for name, result in zip(names, (first, second), strict=True):
        alone = Engine(backbone)
        alone.add("x", result.path)
        for answer, row in zip([a for a, r in zip(answers, requests, strict=True) if r[0] == name], ROWS, strict=True):
            (wanted,) = alone.classify([("x", row)])
            assert answer.probabilities == pytest.approx(wanted.probabilities, rel=1e-4)


def test_the_best_evaluation_is_what_was_measured():
    far = ContextAwarePromptTuning(examples=2, input_epsilon=20, format_epsilon=20)
    # What is learned is the opposite of what is measured: it is forgotten again, step by step.
    rows = [{**row, "label": LABELS[1 - LABELS.index(row["label"])]} for row in ROWS]
    result = run(method=far, rows=rows, eval_rows=ROWS, steps=12, eval_every=2, learning_rate=0.3)
    measured = [(e["eval_accuracy"], -e["eval_loss"]) for e in result.history if "eval_loss" in e]
    assert max(measured) > measured[-1]
    backbone = tiny.backbone()
    filling = Filling(result.prompt.values)
    examples = ExampleMaker(result.prompt.task, backbone.tokenizer).all(ROWS)
    words = ExampleMaker(result.prompt.task, backbone.tokenizer).verbalizer.words
    logits, _ = Forward(backbone)(examples, [filling])
    loss = F.cross_entropy(logits[:, -1, [w[0] for w in words]], torch.tensor([e.label for e in examples]))
    assert float(loss) == pytest.approx(-max(measured)[1], rel=1e-4)


def test_each_virtual_token_is_nearest_to_its_own_word():
    backbone = tiny.backbone()
    prompt = run(backbone=backbone, learning_rate=0.05).prompt
    words = [backbone.tokenizer.decode([t]) for t in prompt.state.parameters["tokens"]]
    assert [t.nearest[0].token for t in inspect(prompt, backbone, nearest=1).tokens] == words
