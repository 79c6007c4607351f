from __future__ import annotations

import json

import pytest
import torch

import tiny
import toys
from softprompt import PrefixTuning, Profile, PromptTuning, Task
from softprompt.errors import OutputError, SettingsError

FRONT = Task("{soft:20}{text}\nTopic: {label}", toys.LABELS)
BEHIND = Task("{text}{soft:3}\nTopic: {label}", toys.LABELS)


def profiled(folder, task=FRONT, method=None, **options):
    return profiled_of(folder, tiny.backbone(), task, method, **options)


def profiled_of(folder, backbone, task, method=None, **options):
    profile = Profile(folder, steps=3)
    result = toys.learn(
        backbone, task, toys.ROWS, None, method or PromptTuning(), callbacks=[profile], **{"steps": 8} | options
    )
    return profile, json.loads((folder / "profile.json").read_text()), result


def test_the_parts_of_a_step_are_told(tmp_path):
    profile, found, _ = profiled(tmp_path)
    assert found["steps"] == 3
    parts = found["parts"]
    for name in ("virtual tokens in front", "rows", "loss", "backward", "update"):
        assert parts[name] > 0, name
    assert sum(parts.values()) == pytest.approx(found["seconds"], rel=1e-6)
    assert 0 < sum(found["operators"].values()) < 1.5 * found["seconds"]
    assert found["operators"]["matrix products"] > 0
    assert profile.report == (tmp_path / "profile.txt").read_text().rstrip("\n")
    assert "backward" in profile.report
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_tokens_are_counted_by_the_step(tmp_path):
    # All rows of one length: one prompt, and rows of which nothing is padded.
    rows = [{"text": "won", "label": label} for label in toys.LABELS * 4]
    profile = Profile(tmp_path, steps=3)
    toys.learn(tiny.backbone(), FRONT, rows, None, PromptTuning(), callbacks=[profile], steps=8, batch_size=4)
    tokens = json.loads((tmp_path / "profile.json").read_text())["tokens"]
    assert tokens["virtual tokens in front, once for all rows"] == 20
    assert tokens["padding of rows"] == 0
    assert tokens["in rows"] % 4 == 0


def test_what_to_change_is_said_where_it_is_clear(tmp_path):
    in_front, _, _ = profiled(tmp_path / "front")
    behind, found, _ = profiled(tmp_path / "behind", BEHIND)
    assert "behind" in in_front.report.split("\n")[-1]
    assert found["tokens"]["read before rows"] > 0
    assert found["parts"]["virtual tokens in front"] < found["parts"]["rows"]
    again, _, _ = profiled(tmp_path / "again", BEHIND, cache_bytes=0)
    assert "--cache" in again.report
    assert "--cache" not in behind.report


def test_evaluations_are_no_part_of_it(tmp_path):
    alone, measured = (
        toys.learn(
            tiny.backbone(),
            FRONT,
            toys.ROWS,
            rows,
            PromptTuning(),
            callbacks=[Profile(tmp_path / name)],
            steps=8,
            **more,
        )
        for name, rows, more in (("alone", None, {}), ("measured", toys.ROWS * 9, {"eval_every": 1}))
    )
    one, other = (json.loads((tmp_path / name / "profile.json").read_text()) for name in ("alone", "measured"))
    assert one["tokens"] == other["tokens"]
    assert all(seconds >= 0 for seconds in other["parts"].values())
    assert other["parts"]["rows"] < 0.9 * other["seconds"]
    assert alone.prompt.training["padding"] == measured.prompt.training["padding"]


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_only_what_would_help_is_advised(tmp_path, family):
    backbone, advice = tiny.backbone(family), "put {soft} behind the text"
    end = "" if family != "llama" else " {label}"
    kind = "classification" if family == "llama" else "sequence-classification"
    for name, template in (("front", "{soft:4}{text}" + end), ("behind", "{text}{soft:4}" + end)):
        task = Task(template, toys.LABELS, kind=kind)
        profile, _, _ = profiled_of(tmp_path / name, backbone, task)
        assert (advice in profile.report) == (family == "llama" and name == "front")


def test_a_folder_that_cannot_be_written_to_any_more_costs_the_profile_alone(tmp_path, caplog):
    profile = Profile(tmp_path / "costs")
    (tmp_path / "costs").rmdir()
    (tmp_path / "costs").write_text("")
    result = toys.learn(tiny.backbone(), FRONT, toys.ROWS, None, PromptTuning(), callbacks=[profile], steps=3)
    assert result.prompt.values.tokens == 20
    assert "the profile could not be written" in caplog.text


def test_a_profile_changes_nothing_that_is_learned(tmp_path):
    *_, watched = profiled(tmp_path, method=PrefixTuning(tokens=4), task=Task("{text} {label}", toys.LABELS))
    plain = toys.learn(
        tiny.backbone(), Task("{text} {label}", toys.LABELS), toys.ROWS, None, PrefixTuning(tokens=4), steps=8
    )
    assert all(torch.equal(t, plain.prompt.tensors()[name]) for name, t in watched.prompt.tensors().items())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_short_run_is_measured_at_its_end(tmp_path, steps):
    _, found, _ = profiled(tmp_path, steps=steps)
    assert 1 <= found["steps"] <= steps


def test_settings_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="it is a file, not a folder"):
        Profile(tmp_path / "file")
    with pytest.raises(SettingsError, match="steps is 0"):
        Profile(tmp_path, steps=0)
