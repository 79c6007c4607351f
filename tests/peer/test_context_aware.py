"""Context-aware prompt tuning."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.overrides import TorchFunctionMode

import tiny
from peft_side import IDS, ONES, adapted, config, last_logits


class Calls(TorchFunctionMode):
    """Counts the functions of torch that are called, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.of[getattr(function, "__name__", str(function))] += 1
        return function(*args, **(kwargs or {}))


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
