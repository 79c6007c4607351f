"""Context-aware prompt tuning."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.overrides import TorchFunctionMode

import reference
import tiny
from peft_side import IDS, ONES, adapted, config, last_logits
from softprompt import artifact
from softprompt.answer.engine import Engine
from softprompt.prompts import ContextAwarePromptTuning
from softprompt.text.task import Task
from toys import LABELS, ROWS, learn


class Calls(TorchFunctionMode):
    """Counts the functions of torch that are called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.of[getattr(function, "__name__", str(function))] += 1
        return function(*args, **(kwargs or {}))


OURS = ContextAwarePromptTuning(examples=2, example_length=4)
TASK = Task("Article: {text}\nTopic: {label}", LABELS)


def test_nothing_of_the_callers_is_changed():
    rows = [dict(row) for row in ROWS]
    before = copy.deepcopy(rows)
    learn(task=TASK, rows=rows, eval_rows=rows, method=OURS, steps=2)
    assert rows == before


@pytest.mark.parametrize("name", ["default", "topic"])
def test_what_was_learned_counts_once_under_every_name(tmp_path, name):
    backbone = reference.backbone("llama")
    trained = learn(backbone, TASK, method=OURS, steps=3, output=tmp_path / "p").prompt
    engine = Engine(backbone)
    engine.add(name, trained)
    first = engine.classify([(name, row) for row in ROWS])
    engine.add(name, tmp_path / "p", replace=True)
    assert engine.classify([(name, row) for row in ROWS]) == first
    # Counted twice, a change would be larger than its bound, and the prompt another one.
    assert torch.equal(artifact.load(tmp_path / "p").values.embeddings, trained.values.embeddings)


def test_what_was_loaded_is_trained_further(tmp_path):
    backbone = reference.backbone("llama")
    first = learn(backbone, TASK, method=OURS, steps=2, output=tmp_path / "p").prompt
    second = learn(backbone, TASK, method=OURS, steps=2, start=tmp_path / "p").prompt
    assert torch.equal(second.state.start["embeddings"], first.values.embeddings)
    assert bool((second.values.embeddings != first.values.embeddings).any())


@pytest.mark.parametrize("batch_size", [1, 6])
def test_a_step_is_one_pass_for_the_context_and_one_for_the_rows(batch_size):
    backbone = tiny.backbone("llama")
    plain = len(calls_of_the_head(backbone, TASK, OURS, steps=1, batch_size=batch_size))
    assert len(calls_of_the_head(backbone, TASK, OURS, steps=2, batch_size=batch_size)) == plain + 2


def calls_of_the_head(backbone, task, method, **options) -> list[torch.Tensor]:
    with reference.inputs_of(backbone.model.get_output_embeddings()) as seen:
        learn(backbone, task, method=method, **options)
    return seen


@pytest.mark.peer
def test_peft_changes_the_callers_mask_of_types():
    model = adapted("llama", "context-aware")
    types = torch.tensor([[1, 2, 3, 4, 4]])
    seen = [types.clone()]
    for _ in range(2):
        model(IDS, attention_mask=ONES, labels=IDS, input_type_mask=types)
        seen.append(types.clone())
    assert [t[0].tolist() for t in seen] == [[1, 2, 3, 4, 4], [5, 6, 7, 8, 8], [9, 10, 11, 12, 12]]


@pytest.mark.peer
def test_peft_adds_what_was_learned_twice_when_it_is_loaded(tmp_path):
    model = adapted("llama", "context-aware")
    before = last_logits(model)
    encoder = model.prompt_encoder["default"]
    learned = encoder.delta_embedding.weight.detach().clone()
    assert float(learned.abs().max()) > 0
    words = encoder.embedding.weight.detach().clone()
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "default")
    torch.testing.assert_close(model.get_prompt(1)[0], words + 2 * learned)
    assert (last_logits(model) - before).abs().max() > 0.01


@pytest.mark.peer
def test_peft_knows_one_name_for_it():
    model = get_peft_model(tiny.model("llama"), config("context-aware"), adapter_name="mine")
    with pytest.raises(KeyError, match="default"):
        model(IDS, attention_mask=ONES, labels=IDS)


@pytest.mark.peer
def test_peft_cannot_train_it_once_it_is_loaded(tmp_path):
    adapted("llama", "context-aware").save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny.model("llama"), tmp_path)
    with pytest.raises(RuntimeError, match="does not require grad"):
        loaded(IDS, attention_mask=ONES, labels=IDS).loss.backward()


@pytest.mark.peer
def test_peft_computes_the_loss_twice_and_goes_through_the_rows_one_by_one():
    model, found = adapted("llama", "context-aware"), {}
    for rows in (2, 5):
        ids = IDS.expand(rows, -1)
        with Calls() as calls:
            model(ids, attention_mask=torch.ones_like(ids), labels=ids)
        found[rows] = calls.of
    assert [found[rows]["cross_entropy"] for rows in found] == [2, 2]
    assert [found[rows]["unique"] for rows in found] == [2, 5]
