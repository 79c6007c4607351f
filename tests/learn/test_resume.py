"""A run that was stopped anywhere and went on ends, to the last bit, as one that was never stopped."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback

import tiny
from softprompt import artifact, atomic
from softprompt.errors import OutputError, SaveError, SettingsError
from softprompt.prompts import PromptTuning
from softprompt.text.task import Task
from toys import BEHIND, FRONT, LABELS, ROWS, TOPICS, at, contents, interrupt, learn

# Checkpoints after steps 5, 10 and 12; two batches of unequal size an epoch; an evaluation between checkpoints.
run = partial(learn, eval_rows=ROWS[:4], steps=12, eval_every=4)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The outcome of a run that nobody stopped."""
    return run(output=tmp_path_factory.mktemp("straight") / "p")


def assert_same(result, straight) -> None:
    saved, wanted = ((r.path / artifact.PROMPT).read_bytes() for r in (result, straight))
    assert saved == wanted
    assert (result.path / artifact.TRAINING).read_bytes() == (straight.path / artifact.TRAINING).read_bytes()
    assert dict(result.metrics) == dict(straight.metrics)
    steps = [[entry for entry in r.history if "train_runtime" not in entry] for r in (result, straight)]
    assert steps[0] == steps[1]
    assert not checkpoints(result.path).exists()


def checkpoints(output: Path) -> Path:
    return output.with_name(output.name + ".checkpoints")


def stop(output: Path, event: str = "on_step_end", step: int = 7, **options) -> Path:
    """Begin a run and stop it; its checkpoints."""
    with pytest.raises(KeyboardInterrupt):
        run(output=output, callbacks=[at(event, step, interrupt)], **options)
    assert not output.exists()
    return checkpoints(output)


class Steps(TrainerCallback):
    """Notes which steps a run makes."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.made.append(state.global_step + 1)


@pytest.mark.parametrize(
    ("event", "step", "first"),
    [
        ("on_train_begin", 0, 1),
        ("on_step_end", 3, 1),
        ("on_step_end", 5, 1),  # before its checkpoint is written
        ("on_save", 5, 6),
        ("on_optimizer_step", 7, 6),
        ("on_evaluate", 8, 6),
        ("on_save", 10, 11),
        ("on_step_end", 12, 11),
        ("on_save", 12, None),
        ("on_train_end", 12, None),
    ],
)
def test_goes_on_from_the_last_checkpoint(tmp_path, straight, event, step, first):
    stop(tmp_path / "p", event, step)
    steps = Steps()
    assert_same(run(output=tmp_path / "p", resume=True, callbacks=[steps]), straight)
    assert (steps.made[0] if steps.made else None) == first
    assert steps.made == list(range(first or 13, 13))


def test_stopped_again_and_again(tmp_path, straight):
    stop(tmp_path / "p", "on_step_end", 6)
    stop(tmp_path / "p", "on_step_end", 8, resume=True)
    stop(tmp_path / "p", "on_step_end", 11, resume=True)
    assert_same(run(output=tmp_path / "p", resume=True), straight)


@pytest.mark.parametrize("template", [FRONT, BEHIND])
def test_generation_goes_on_as_well(tmp_path, template):
    whole = run(task=Task(template), output=tmp_path / "whole")
    stop(tmp_path / "p", task=Task(template))
    assert_same(run(task=Task(template), output=tmp_path / "p", resume=True), whole)


def test_killed_outright(tmp_path, straight):
    script = (
        "import os, signal, torch; torch.set_num_threads(1);"
        "from toys import at, ROWS, learn;"
        "kill = at('on_step_end', 8, lambda model: os.kill(os.getpid(), signal.SIGKILL));"
        f"learn(eval_rows=ROWS[:4], steps=12, eval_every=4, output={str(tmp_path / 'p')!r}, callbacks=[kill])"
    )
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [p.name for p in checkpoints(tmp_path / "p").glob("checkpoint-*")] == ["checkpoint-5"]
    assert_same(run(output=tmp_path / "p", resume=True), straight)


@pytest.mark.parametrize("damage", ["truncated", "deleted", "emptied", "not yet there"])
def test_a_half_written_checkpoint_is_passed_over(tmp_path, straight, damage):
    folder = stop(tmp_path / "p", "on_save", 10) / "checkpoint-10"
    state = folder / "trainer_state.json"
    if damage == "not yet there":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "deleted":
        state.unlink()
        (folder / "optimizer.pt").write_bytes(b"half")
    else:
        state.write_bytes(state.read_bytes()[: 0 if damage == "emptied" else 300])
    steps = Steps()
    assert_same(run(output=tmp_path / "p", resume=True, callbacks=[steps]), straight)
    assert steps.made[0] == 6


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_at_the_save_loses_nothing(tmp_path, straight, monkeypatch):
    run(output=tmp_path / "p", seed=9)
    old = contents(tmp_path / "p")
    with monkeypatch.context() as disk:
        disk.setattr(atomic, "write", full_disk)
        with pytest.raises(SaveError, match="No space left on device"):
            run(output=tmp_path / "p", overwrite=True)
    assert contents(tmp_path / "p") == old
    steps = Steps()
    result = run(output=tmp_path / "p", overwrite=True, resume=True, callbacks=[steps])
    assert steps.made == []
    assert_same(result, straight)


def test_a_full_disk_at_a_checkpoint_says_so_and_the_run_goes_on(tmp_path, straight, monkeypatch):
    with monkeypatch.context() as disk:
        disk.setattr(Trainer, "_save_optimizer_and_scheduler", full_disk)
        with pytest.raises(SaveError, match=r"checkpoint of step 5 .*No space left on device.*--resume"):
            run(output=tmp_path / "p")
    assert_same(run(output=tmp_path / "p", resume=True), straight)


@pytest.mark.parametrize(
    ("difference", "named"),
    [
        ({"steps": 13}, "steps"),
        ({"learning_rate": 0.2}, "learning_rate"),
        ({"seed": 1}, "seed"),
        ({"eval_every": 5, "batch_size": 3}, "batch_size, eval_every"),
        ({"task": Task(BEHIND, LABELS)}, "template, training rows, evaluation rows"),
        ({"task": Task(FRONT, LABELS[::-1])}, "labels"),
        ({"task": Task(FRONT, LABELS, max_length=60)}, "max_length"),
        ({"method": PromptTuning(tokens=4, init="random")}, "method's init"),
        ({"rows": ROWS[::-1]}, "training rows"),
        ({"eval_rows": ROWS}, "evaluation rows"),
        ({"backbone": tiny.backbone(seed=1)}, "backbone"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_run_is_refused_and_what_differs_is_named(tmp_path, straight, difference, named):
    before = contents(stop(tmp_path / "p"))
    with pytest.raises(SettingsError, match=f"had another .*{named}"):
        run(output=tmp_path / "p", resume=True, **difference)
    assert contents(checkpoints(tmp_path / "p")) == before


def test_only_what_differs_is_named(tmp_path):
    stop(tmp_path / "p")
    with pytest.raises(SettingsError) as refusal:
        run(output=tmp_path / "p", resume=True, steps=20)
    assert refusal.value.what == "the interrupted run had another steps"


@pytest.mark.parametrize("difference", [{"cache_bytes": 0}, {"eval_batch_size": 2}], ids=str)
def test_what_decides_nothing_may_be_changed(tmp_path, straight, difference):
    stop(tmp_path / "p")
    steps = Steps()
    result = run(output=tmp_path / "p", resume=True, callbacks=[steps], **difference)
    assert steps.made[0] == 6
    torch.testing.assert_close(result.prompt.values.embeddings, straight.prompt.values.embeddings)
    assert result.metrics == pytest.approx(dict(straight.metrics), rel=1e-5)
    ((name, value),) = difference.items()
    assert result.prompt.training[name] == value


def test_a_run_left_behind_is_refused_unless_it_is_resumed(tmp_path):
    before = contents(stop(tmp_path / "p"))
    with pytest.raises(OutputError, match=r"an interrupted run stands there.*--resume.*--overwrite"):
        run(output=tmp_path / "p")
    assert contents(checkpoints(tmp_path / "p")) == before


def test_overwrite_begins_a_left_behind_run_anew(tmp_path, straight):
    stop(tmp_path / "p", seed=3)
    steps = Steps()
    assert_same(run(output=tmp_path / "p", overwrite=True, callbacks=[steps]), straight)
    assert steps.made == list(range(1, 13))


def test_resume_begins_where_there_is_nothing(tmp_path, straight):
    assert_same(run(output=tmp_path / "p", resume=True), straight)


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_stopped_before_its_first_checkpoint_stands_in_nobodys_way(tmp_path, straight, resume):
    stop(tmp_path / "p", "on_step_end", 1, seed=4)
    assert_same(run(output=tmp_path / "p", resume=resume), straight)


@pytest.mark.parametrize("resume", [False, True])
def test_a_half_written_record_of_a_run_stands_in_nobodys_way(tmp_path, straight, monkeypatch, resume):
    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full_disk)
        with pytest.raises(OutputError, match="cannot be written to"):
            run(output=tmp_path / "p")
    assert_same(run(output=tmp_path / "p", resume=resume), straight)


def test_the_record_of_a_run_is_readable(tmp_path):
    record = json.loads((stop(tmp_path / "p") / "run.json").read_text())
    assert record["template"] == TOPICS.template.source
    assert record["steps"] == 12
