"""A prefix is looked at site by site."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

import reference
import tiny
from commands import run
from softprompt import artifact
from softprompt.backbone.backbone import Backbone
from softprompt.errors import MismatchError, OutputError
from softprompt.inspection.measure import inspect
from softprompt.inspection.prefix import PrefixInspection
from softprompt.inspection.prefix_picture import draw_prefix
from softprompt.prompts import PrefixTuning
from softprompt.saved import TrainingState
from softprompt.text.task import Task
from toys import LABELS, ROWS, learn, png_size, prompt

P = 3
TASK = Task("{soft:3}{bos}Article: {text}\nTopic: {label}", LABELS)


def saved(family: str = "llama", *, tokens: int = P, started: bool = True):
    backbone = reference.backbone(family)
    now, start = (reference.random_prefix(backbone, tokens, seed=seed) for seed in (1, 2))
    task = TASK if tokens == P else Task(TASK.template.source.replace("3", str(tokens)), LABELS)
    made = replace(prompt(backbone, TASK), task=task, method=PrefixTuning(tokens=tokens), values=now)
    return replace(made, state=TrainingState({}, start.tensors()) if started else None), start


def inspected(**options) -> PrefixInspection:
    return inspect(saved(**options)[0], reference.backbone("llama"))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_norms_and_drift_are_those_of_all_heads_together(family):
    made, start = saved(family)
    found = inspect(made, reference.backbone(family))
    assert (found.positions, [site.name for site in found.sites]) == (P, list(made.values.sites))
    for i, site in enumerate(found.sites):
        for part, now, began in (
            (site.keys, made.values.keys[i], start.keys[i]),
            (site.values, made.values.values[i], start.values[i]),
        ):
            for p in range(P):
                assert part.norms[p] == pytest.approx(float(now[p].square().sum().sqrt()), rel=1e-5)
                assert part.start_norms[p] == pytest.approx(float(began[p].square().sum().sqrt()), rel=1e-5)
                assert part.drifts[p] == pytest.approx(float((now[p] - began[p]).square().sum().sqrt()), rel=1e-5)


def test_cosines_are_those_of_each_two_positions():
    made, _ = saved()
    found, layers = inspect(made, reference.backbone("llama")), len(made.values.keys)
    for table, tensors, name in (
        (found.key_cosines, made.values.keys, "keys"),
        (found.value_cosines, made.values.values, "values"),
    ):
        each = torch.tensor(
            [[[torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) for b in t] for a in t] for t in tensors]
        )
        assert torch.tensor(table) == pytest.approx(each.mean(dim=0), abs=1e-5)
        for i in range(layers):
            apart = [each[i, a, b] for a in range(P) for b in range(P) if a != b]
            assert getattr(found.sites[i], name).cosine == pytest.approx(float(sum(apart) / len(apart)), abs=1e-5)


def test_positions_that_say_the_same_are_alike():
    made, _ = saved()
    same = replace(made.values, keys=tuple(t[:1].expand(P, -1, -1) for t in made.values.keys))
    found = inspect(replace(made, values=same), reference.backbone("llama"))
    assert [site.keys.cosine for site in found.sites] == pytest.approx([1.0] * len(found.sites), abs=1e-5)
    assert all(site.values.cosine < 0.9 for site in found.sites)


def test_one_position_is_like_no_other():
    assert {(site.keys.cosine, site.values.cosine) for site in inspected(tokens=1).sites} == {(None, None)}


def test_without_its_start_a_prefix_has_no_drift():
    parts = [part for site in inspected(started=False).sites for part in (site.keys, site.values)]
    assert {(part.drifts, part.start_norms) for part in parts} == {(None, None)}


def test_a_prefix_of_another_backbone_is_refused():
    with pytest.raises(MismatchError):
        inspect(saved()[0], tiny.backbone(seed=1))


@pytest.mark.parametrize("started", [True, False])
def test_the_picture_is_a_png(tmp_path, started):
    draw_prefix(inspected(started=started), "100 $ and _", tmp_path / "p.png")
    assert png_size((tmp_path / "p.png").read_bytes())[0] > 1000
    with pytest.raises(OutputError, match=r"nowhere.*cannot be written"):
        draw_prefix(inspected(), "title", tmp_path / "nowhere" / "p.png")


def test_the_command_shows_draws_and_explains_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.model("llama").save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    backbone = Backbone.load("model")
    learn(backbone, Task("Article: {text}\nTopic: {label}", LABELS), ROWS, method=PrefixTuning(tokens=P), output="p")
    shown = run("inspect", "p", "--plot", "p.png")
    assert shown.exit_code == 0, shown.output
    for part in (
        "prefix-tuning for model",
        f"over {P} position(s)",
        "No word is near a key or a value",
        "Picture: p.png",
    ):
        assert part in shown.stdout
    # A long name is folded.
    starts = [line[1:4].strip() for line in shown.stdout.splitlines() if line.startswith("│")]
    assert [int(start) for start in starts if start] == list(range(len(backbone.site_shapes)))
    assert png_size((tmp_path / "p.png").read_bytes())
    found = json.loads(run("inspect", "p", "--json").stdout)
    wanted = asdict(inspect(artifact.load("p", training=True), backbone))
    assert found["sites"][0]["keys"]["norms"] == pytest.approx(wanted["sites"][0]["keys"]["norms"])
    assert all(drift > 0 for site in found["sites"] for drift in site["values"]["drifts"])
    assert [site["name"] for site in found["sites"]] == list(backbone.site_shapes)
    assert found["method"] == "prefix-tuning"
