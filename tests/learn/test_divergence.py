from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file

import tiny
from softprompt import artifact
from softprompt.errors import DivergenceError
from softprompt.learn import run
from softprompt.learn.trainer import Learner, LearnerTrainer
from softprompt.prompts import PTuning
from toys import ROWS, at, contents, interrupt, learn

NAN = float("nan")


def spoil(model: Learner) -> None:
    """The prompt is no number from now on."""
    model.parametrization.embeddings.data.fill_(NAN)


def spoil_gradient(model: Learner) -> None:
    model.parametrization.embeddings.grad.fill_(NAN)


@pytest.mark.parametrize(
    ("event", "when", "action", "step", "what"),
    [
        ("on_step_begin", 3, spoil, 4, "the loss is nan at step 4"),
        ("on_pre_optimizer_step", 5, spoil_gradient, 6, "not finite at step 6"),
        ("on_step_end", 2, spoil, 2, "evaluation rows is nan at step 2"),
    ],
    ids=["loss", "gradient of the last step", "evaluation"],
)
def test_the_last_good_prompt_is_saved_and_the_old_one_untouched(tmp_path, event, when, action, step, what):
    learn(output=tmp_path / "p", seed=7)
    old = contents(tmp_path / "p")
    seen = []
    note = at("on_step_begin", step - 1, lambda model: seen.append(model.parametrization.embeddings.detach().clone()))
    with pytest.raises(DivergenceError, match=what) as failure:
        learn(eval_rows=ROWS, output=tmp_path / "p", overwrite=True, callbacks=[note, at(event, when, action)])
    assert failure.value.step == step
    assert str(tmp_path / "p.last-good") in str(failure.value)
    assert "learning rate" in failure.value.instead
    saved = artifact.load(tmp_path / "p.last-good", tiny.backbone(), training=True)
    assert torch.isfinite(saved.values.embeddings).all()
    assert saved.training["diverged_at_step"] == step
    if action is not spoil or event == "on_step_end":
        assert torch.equal(saved.values.embeddings, seen[0])
    assert contents(tmp_path / "p") == old
    # Nothing is left that would only diverge again.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "p.last-good"]


@pytest.mark.parametrize("output", [True, False], ids=["saved", "not saved"])
def test_a_learning_rate_beyond_all_bounds(tmp_path, output):
    with pytest.raises(DivergenceError) as failure:
        learn(tiny.backbone("gpt2"), learning_rate=1e30, steps=9, output=tmp_path / "p" if output else None)
    assert re.search(rf"at step {failure.value.step}\b", str(failure.value))
    assert (tmp_path / "p.last-good").exists() == output
    if output:
        assert torch.isfinite(artifact.load(tmp_path / "p.last-good").values.embeddings).all()


def test_what_stands_where_the_last_good_prompt_would_go_is_left_alone(tmp_path):
    (tmp_path / "p.last-good").mkdir()
    (tmp_path / "p.last-good" / "thesis.txt").write_text("years of work")
    with pytest.raises(DivergenceError, match=r"could not be saved.*something other than a prompt"):
        learn(output=tmp_path / "p", callbacks=[at("on_step_begin", 3, spoil)])
    assert contents(tmp_path / "p.last-good") == {"thesis.txt": b"years of work"}


def test_a_run_that_diverges_as_soon_as_it_goes_on_loses_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        learn(output=tmp_path / "p", callbacks=[at("on_step_begin", 5, interrupt)])
    before = load_file(tmp_path / "p.checkpoints" / "checkpoint-5" / "model.safetensors")
    with pytest.raises(DivergenceError, match="nan at step 6"):
        learn(output=tmp_path / "p", resume=True, callbacks=[at("on_step_begin", 5, spoil)])
    saved = artifact.load(tmp_path / "p.last-good")
    assert torch.equal(saved.values.embeddings, before["parametrization.embeddings"])


def test_checkpoints_stay_where_the_last_good_prompt_could_not_be_saved(tmp_path):
    (tmp_path / "p.last-good").write_text("in the way")
    with pytest.raises(DivergenceError, match="could not be saved"):
        learn(output=tmp_path / "p", callbacks=[at("on_step_begin", 5, spoil)])
    assert (tmp_path / "p.checkpoints" / "checkpoint-5").is_dir()


def test_good_parameters_are_remembered_where_they_would_be_saved_alone(tmp_path, monkeypatch):
    trainers = []

    class Noted(LearnerTrainer):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            trainers.append(self)

    monkeypatch.setattr(run, "LearnerTrainer", Noted)
    places, differ = [], []

    def note(model: Learner) -> None:
        good, now = trainers[-1].last_good, model.parametrization.state_dict()
        places.append({name: t.data_ptr() for name, t in good.items()})
        differ.append(any(not torch.equal(good[name], t) for name, t in now.items()))

    learn(method=PTuning(tokens=4), callbacks=[])
    assert trainers[-1].last_good is None
    learn(method=PTuning(tokens=4), output=tmp_path / "p", callbacks=[at("on_step_end", n, note) for n in (2, 5)])
    # They are those from before the update, and copied to where they were.
    assert differ == [True, True]
    assert places[0] == places[1]
