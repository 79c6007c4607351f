"""A saved head is checked as strictly as the prompt beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import reference
from softprompt import artifact
from softprompt.errors import ArtifactError, MismatchError
from softprompt.prompts.head import Head
from softprompt.text.task import Task
from toys import LABELS, contents, edit, kinds_of, learn, prompt, replace_tensors, rows_of, task_of

PROMPT, TRAINING = artifact.PROMPT, artifact.TRAINING


@pytest.fixture(scope="module")
def trained():
    """A prompt with a head."""
    backbone = reference.backbone("bert")
    return learn(backbone, task_of("token-classification", backbone), rows_of("token-classification"), steps=1).prompt


@pytest.fixture
def folder(tmp_path, trained) -> Path:
    return artifact.save(trained, tmp_path / "tags")


@pytest.mark.parametrize(("family", "kind"), [(f, k) for f in ("bert", "t5") for k in kinds_of(f)])
def test_every_kind_is_loaded_to_the_last_bit(tmp_path, family, kind):
    backbone = reference.backbone(family)
    saved = prompt(backbone, task_of(kind, backbone), trained=False)
    loaded = artifact.load(artifact.save(saved, tmp_path / "p"), backbone)
    assert loaded.task == saved.task
    assert loaded.tensors().keys() == saved.tensors().keys()
    assert all(torch.equal(t, saved.tensors()[name]) for name, t in loaded.tensors().items())
    assert (loaded.head is None) == (saved.head is None)
    assert contents(artifact.save(loaded, tmp_path / "again" / "p")) == contents(tmp_path / "p")
    assert f"- task: {kind}" in (tmp_path / "p" / "README.md").read_text()


def test_all_of_a_task_is_kept(tmp_path):
    words = Task(
        "{soft:2}{text} {other}", LABELS, kind="token-classification", field="text", target="tags", max_length=70
    )
    several = Task("{soft:2}{text}:{label}", {"a": "won", "b": "the"}, kind="multi-label", none="x", target="several")
    for family, task in (("bert", words), ("llama", several)):
        backbone = reference.backbone(family)
        path = artifact.save(prompt(backbone, task), tmp_path / "p", overwrite=True)
        assert artifact.load(path, backbone).task == task


def drop(name: str, *, file: str = PROMPT):
    return lambda f: replace_tensors(f, file, lambda t: t.pop(name))


def put(name: str, change, *, file: str = PROMPT):
    return lambda f: replace_tensors(f, file, lambda t: t.update({name: change(t[name])}))


def drop_head(folder: Path) -> None:
    replace_tensors(folder, PROMPT, lambda t: [t.pop(n) for n in ("head.weight", "head.bias")])


DAMAGES = {
    "no head": (drop_head, "a token-classification has a head, the file none"),
    "no bias": (drop("head.bias"), "the head has 0 outputs, the task 2"),
    "no weight": (drop("head.weight"), r"a head holds \['bias'\], not \['bias', 'weight'\]"),
    "one tensor too many": (
        lambda f: replace_tensors(f, PROMPT, lambda t: t.update({"head.more": torch.zeros(2)})),
        r"a head holds \['bias', 'more', 'weight'\]",
    ),
    "fewer outputs": (put("head.bias", lambda t: t[:1].clone()), "the head has 1 outputs, the task 2"),
    "weight of fewer outputs": (
        put("head.weight", lambda t: t[:1].clone()),
        r"a head has shapes \[1, 32\] and \[2\], not \[C, D\] and \[C\]",
    ),
    "flat weight": (put("head.weight", lambda t: t[:, 0].clone()), r"a head has shapes \[2\] and \[2\]"),
    "scalar bias": (put("head.bias", lambda t: t[0].clone()), "does not hold together"),
    "half precision": (put("head.weight", lambda t: t.half()), r"'head.weight' is float16 \[2, 32\], not float32"),
    "whole numbers": (put("head.weight", lambda t: t.long()), "a head holds torch.int64 and torch.float32, not float"),
    "no number": (put("head.bias", lambda t: t.fill_(float("nan"))), "'head.bias' holds numbers that are not finite"),
    "start without a head": (drop("start.head.bias", file=TRAINING), "the values it started from do not match"),
    "a task without a head": (
        lambda f: edit(f, lambda m: m.update(task="feature-extraction", labels=None, field=None)),
        "a feature-extraction has no head, the file one",
    ),
    "more labels": (
        lambda f: edit(f, lambda m: m["labels"].update(tech="tech")),
        "the head has 2 outputs, the task 3",
    ),
    "unknown kind": (lambda f: edit(f, lambda m: m.update(task="tagging")), "task is wrong"),
    "field that is not there": (lambda f: edit(f, lambda m: m.update(field="x")), "it has no field {x}"),
    "field of a task without": (
        lambda f: edit(f, lambda m: m.update(task="sequence-classification")),
        "a sequence-classification is not answered inside a field",
    ),
    "none of another type": (lambda f: edit(f, lambda m: m.update(none=None)), "none is wrong"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_by_name(folder, damage, message):
    backbone = reference.backbone("bert")
    artifact.load(folder, backbone, training=True)
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as refusal:
        artifact.load(folder, backbone, training=True)
    assert str(folder) in str(refusal.value)


def test_a_head_of_another_width_does_not_fit(folder):
    replace_tensors(folder, PROMPT, lambda t: t.update({"head.weight": torch.zeros(2, 48)}))
    with pytest.raises(MismatchError, match=r"its head reads states of 48 numbers, the model's are 32.*tiny-bert"):
        artifact.load(folder, reference.backbone("bert"))
    assert artifact.load(folder).head.weight.shape == (2, 48)


def test_a_head_for_a_prompt_without_one_is_refused(tmp_path):
    path = artifact.save(prompt(reference.backbone("llama")), tmp_path / "p")
    replace_tensors(path, PROMPT, lambda t: t.update({"head.weight": torch.zeros(2, 32), "head.bias": torch.zeros(2)}))
    with pytest.raises(ArtifactError, match="a classification has no head, the file one"):
        artifact.load(path)


def test_what_was_written_before_there_were_fields_and_nones_is_read(tmp_path):
    saved = prompt(reference.backbone("llama"))
    path = artifact.save(saved, tmp_path / "p")
    edit(path, lambda m: (m.pop("none"), m.pop("field")))
    assert artifact.load(path, reference.backbone("llama")).task == saved.task


def test_a_loaded_head_takes_no_gradient_and_no_memory_of_the_trained_one(folder, trained):
    loaded = artifact.load(folder)
    assert not any(p.requires_grad for p in loaded.head.parameters())
    assert not any(p.requires_grad for p in trained.head.parameters())
    assert loaded.nbytes == (4 * 32 + 2 * 32 + 2) * 4
    tensors = loaded.head.tensors()
    tensors["weight"].zero_()
    assert bool(loaded.head.weight.any())


def test_a_random_head_is_small_and_repeated_by_its_generator():
    one, other = (Head.random(64, 5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.weight, other.weight)
    assert 0.015 < float(one.weight.detach().std()) < 0.025
    assert not bool(one.bias.any())
    assert one(torch.zeros(2, 7, 64, dtype=torch.bfloat16)).shape == (2, 7, 5)
