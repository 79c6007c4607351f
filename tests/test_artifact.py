from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest
import torch

import reference
import tiny
from softprompt import artifact
from softprompt.backbone.backbone import Backbone
from softprompt.errors import ArtifactError, MismatchError, OutputError, SaveError
from softprompt.prompts import HardPrompt, PromptTuning
from softprompt.text.task import Task
from toys import BEHIND, FRONT, LABELS, TOPICS, WRITING, contents, edit, prompt, replace_tensors

MANIFEST, PROMPT, TRAINING = artifact.MANIFEST, artifact.PROMPT, artifact.TRAINING

TASKS = {
    "labels": TOPICS,
    "words": Task(BEHIND, {"0": "won", "1": "fell"}, target="answer", max_length=60),
    "writing": WRITING,
    "slots and braces": Task("{soft:2}{{in}} {text}\n| {soft:5}{title} `x` {label}", ["é", "雨"]),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    return artifact.save(prompt(reference.backbone("llama"), trained=True), tmp_path / "topic")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_was_saved_is_loaded_to_the_last_bit(tmp_path, task):
    backbone = reference.backbone("llama")
    method = PromptTuning(tokens=7, init="text", text='start "here"')
    saved = prompt(backbone, task, method=method, trained=True)
    loaded = artifact.load(artifact.save(saved, tmp_path / "p"), backbone, training=True)
    for name, value in vars(saved).items():
        if name not in ("values", "state"):
            assert getattr(loaded, name) == value, name
    assert torch.equal(loaded.values.embeddings, saved.values.embeddings)
    for kind in ("parameters", "start"):
        mine, theirs = getattr(saved.state, kind), getattr(loaded.state, kind)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    again = artifact.save(loaded, tmp_path / "again" / "p")
    assert contents(again) == contents(tmp_path / "p")


def test_a_hard_prompt_is_saved_and_loaded(tmp_path):
    backbone = reference.backbone("llama")
    saved = prompt(backbone, Task("{text}: {label}", LABELS), method=HardPrompt())
    loaded = artifact.load(artifact.save(saved, tmp_path / "p"), backbone)
    assert loaded.values.embeddings.shape == (0, 32)
    assert loaded.task == saved.task
    assert not artifact.holds_training(tmp_path / "p")


def test_what_training_needs_is_read_only_when_asked_for_and_may_be_taken_away(folder):
    assert artifact.load(folder).state is None
    assert artifact.holds_training(folder)
    (folder / TRAINING).unlink()
    assert artifact.load(folder, reference.backbone("llama")).state is None
    assert not artifact.holds_training(folder)
    with pytest.raises(ArtifactError, match=f"{TRAINING}: the file is missing"):
        artifact.load(folder, training=True)


def test_a_prompt_is_a_few_kilobytes(folder):
    assert artifact.load(folder).nbytes == 4 * 32 * 4
    assert (folder / PROMPT).stat().st_size < 1000


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def put_a_pickle(folder: Path, *, known: bool) -> None:
    content = pickle.dumps({"embeddings": [1.0]})
    (folder / PROMPT).write_bytes(content)
    if known:
        edit(folder, lambda m: m["files"][PROMPT].update(sha256=hashlib.sha256(content).hexdigest()))


DAMAGES = {
    "no manifest": (lambda f: (f / MANIFEST).unlink(), rf"topic: it has no {MANIFEST}"),
    "empty manifest": (lambda f: (f / MANIFEST).write_text(""), rf"{MANIFEST}: it is damaged"),
    "truncated manifest": (lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes()[:-9]), "it is damaged"),
    "manifest of bytes": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\x00"), f"{MANIFEST}: it is damaged"),
    "manifest is a list": (lambda f: (f / MANIFEST).write_text("[]"), f"{MANIFEST}: it is wrong"),
    "no values": (lambda f: (f / PROMPT).unlink(), f"{PROMPT}: the file is missing"),
    "truncated values": (
        lambda f: (f / PROMPT).write_bytes((f / PROMPT).read_bytes()[:-4]),
        f"{PROMPT}: it is damaged",
    ),
    "flipped byte": (lambda f: flip_a_byte(f / PROMPT), f"{PROMPT}: it is damaged"),
    "flipped byte in training": (lambda f: flip_a_byte(f / TRAINING), f"{TRAINING}: it is damaged"),
    "pickle": (lambda f: put_a_pickle(f, known=False), f"{PROMPT}: it is damaged"),
    "pickle with its checksum": (lambda f: put_a_pickle(f, known=True), f"{PROMPT}: it is no safetensors file"),
    "unknown key": (lambda f: edit(f, lambda m: m.update(extra=1)), "extra is wrong"),
    "unknown key inside": (lambda f: edit(f, lambda m: m["backbone"].update(extra=1)), "backbone.extra is wrong"),
    "missing key": (lambda f: edit(f, lambda m: m.pop("template")), "template is wrong: Field required"),
    "missing key inside": (
        lambda f: edit(f, lambda m: m["backbone"].pop("fingerprint")),
        "backbone.fingerprint is wrong",
    ),
    "key of another type": (lambda f: edit(f, lambda m: m.update(target=3)), "target is wrong"),
    "newer format": (lambda f: edit(f, lambda m: m.update(format=2)), r"its format is 2.*Install a newer softprompt"),
    "newer format, other keys": (lambda f: (f / MANIFEST).write_text('{"format": 9}'), "its format is 9"),
    "no such format": (lambda f: edit(f, lambda m: m.update(format=0)), "format is wrong"),
    "unknown method": (lambda f: edit(f, lambda m: m["method"].update(name="magic")), "method 'magic' is unknown"),
    "unknown setting": (lambda f: edit(f, lambda m: m["method"]["settings"].update(depth=2)), "no setting depth"),
    "setting out of range": (lambda f: edit(f, lambda m: m["method"]["settings"].update(tokens=0)), "tokens is 0"),
    "setting of another type": (
        lambda f: edit(f, lambda m: m["method"]["settings"].update(tokens="4")),
        "hold together",
    ),
    "template": (lambda f: edit(f, lambda m: m.update(template="{soft:4}{text")), "a brace stands alone"),
    "slot without length": (lambda f: edit(f, lambda m: m.update(template="{soft}{text}{label}")), "has no length"),
    "label word": (lambda f: edit(f, lambda m: m["labels"].update(sports="")), "empty label word"),
    "labels of a generation": (lambda f: edit(f, lambda m: m.update(task="generation")), "a generation has no labels"),
    "no labels": (lambda f: edit(f, lambda m: m.update(labels=None)), "a classification needs two labels"),
    "other slot length": (
        lambda f: edit(f, lambda m: m.update(template=FRONT.replace("4", "5"))),
        "it fills 4 positions, the template's slots ask for 5",
    ),
    "other shape": (
        lambda f: edit(f, lambda m: m["files"][PROMPT]["tensors"]["embeddings"].update(shape=[8, 16])),
        r"tensor 'embeddings' is float32 \[4, 32\], prompt.json says float32 \[8, 16\]",
    ),
    "other dtype": (
        lambda f: edit(f, lambda m: m["files"][PROMPT]["tensors"]["embeddings"].update(dtype="float16")),
        r"tensor 'embeddings' is float32 .* says float16",
    ),
    "tensor not there": (
        lambda f: edit(f, lambda m: m["files"][PROMPT]["tensors"].update(more={"shape": [1], "dtype": "float32"})),
        "tensor 'more' is missing",
    ),
    "tensor not known": (
        lambda f: edit(f, lambda m: m["files"][PROMPT].update(tensors={})),
        "tensor 'embeddings' is .* says missing",
    ),
    "tensor of another name": (
        lambda f: replace_tensors(f, PROMPT, lambda t: t.update(vectors=t.pop("embeddings"))),
        r"holds \['vectors'\]",
    ),
    "one tensor too many": (
        lambda f: replace_tensors(f, PROMPT, lambda t: t.update(more=torch.zeros(1))),
        r"holds \['embeddings', 'more'\]",
    ),
    "half precision": (
        lambda f: replace_tensors(f, PROMPT, lambda t: t.update(embeddings=t["embeddings"].half())),
        r"'embeddings' is float16 \[4, 32\], not float32",
    ),
    "whole numbers": (
        lambda f: replace_tensors(f, PROMPT, lambda t: t.update(embeddings=t["embeddings"].long())),
        "not floating point",
    ),
    "values that are no numbers": (
        lambda f: replace_tensors(f, PROMPT, lambda t: t["embeddings"][2].fill_(float("nan"))),
        f"{PROMPT}: tensor 'embeddings' holds numbers that are not finite",
    ),
    "endless values": (
        lambda f: replace_tensors(f, PROMPT, lambda t: t["embeddings"][0, 0].fill_(float("inf"))),
        "not finite",
    ),
    "start of another shape": (
        lambda f: replace_tensors(f, TRAINING, lambda t: t.update({"start.embeddings": torch.zeros(3, 32)})),
        f"{TRAINING}: the values it started from do not match",
    ),
    "no start": (lambda f: replace_tensors(f, TRAINING, lambda t: t.pop("start.embeddings")), "do not match"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_by_name(folder, damage, message):
    artifact.load(folder, reference.backbone("llama"), training=True)
    damage(folder)
    with pytest.raises(ArtifactError, match=message) as refusal:
        artifact.load(folder, reference.backbone("llama"), training=True)
    assert str(folder) in str(refusal.value)


def test_a_pickle_is_never_read(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (folder / PROMPT).write_bytes(pickle.dumps(Trap()))
    (folder / "prompt.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ArtifactError):
        artifact.load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_what_is_no_folder_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=place):
        artifact.load(tmp_path / place)


def test_a_folder_that_a_killed_writer_set_aside_is_found(folder):
    folder.rename(folder.with_name(f".{folder.name}.replaced"))
    assert artifact.load(folder, reference.backbone("llama"), training=True).state is not None
    assert artifact.holds_training(folder)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: tiny.backbone(seed=1), "model fingerprint .*not for 'tiny-llama'"),
        (lambda: tiny.backbone("gpt2"), "model fingerprint .*not for 'tiny-gpt2'"),
        (lambda: wide_backbone(), "does not fit 'wide': its vectors have 32 numbers, the model's embeddings 16"),
        (lambda: Backbone(tiny.model("llama"), other_tokenizer(), "t"), "tokenizer fingerprint"),
    ],
    ids=["other weights", "other architecture", "other width", "other tokenizer"],
)
def test_a_prompt_of_another_backbone_is_refused(folder, made, message):
    with pytest.raises(MismatchError, match=message) as refusal:
        artifact.load(folder, made())
    assert refusal.value.where == str(folder)
    assert "tiny-llama" in str(refusal.value)


def wide_backbone() -> Backbone:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gpt2", vocab_size=400, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    return Backbone(AutoModelForCausalLM.from_config(config), tiny.tokenizer(), "wide")


def other_tokenizer():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<more>"])
    return tokenizer


def test_fingerprints_are_those_of_the_weights_and_not_of_their_precision(folder):
    low = Backbone(tiny.model("llama").to(torch.bfloat16), tiny.tokenizer(), "low")
    high = reference.backbone("llama")
    assert (low.fingerprint, low.tokenizer_fingerprint) == (high.fingerprint, high.tokenizer_fingerprint)
    assert artifact.load(folder, low).values.tokens == 4


def test_padding_and_truncation_make_no_other_tokenizer():
    padded = tiny.tokenizer()
    padded(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert (
        Backbone(tiny.model("llama"), padded).tokenizer_fingerprint == reference.backbone("llama").tokenizer_fingerprint
    )


def test_a_standing_prompt_is_replaced_only_when_told(folder):
    before, other = contents(folder), prompt(reference.backbone("llama"), seed=3)
    with pytest.raises(OutputError, match="a prompt stands there"):
        artifact.save(other, folder)
    assert contents(folder) == before
    artifact.save(other, folder, overwrite=True)
    assert torch.equal(artifact.load(folder).values.embeddings, other.values.embeddings)
    # What belonged to the old one is gone.
    assert not artifact.holds_training(folder)


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_but_a_prompt_is_replaced(tmp_path, overwrite):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)
    for place in ("mine", "file", "file/below"):
        with pytest.raises(OutputError):
            artifact.save(prompt(reference.backbone("llama")), tmp_path / place, overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_an_output_without_a_name_is_refused(name):
    with pytest.raises(OutputError, match="no name of its own"):
        artifact.check_output(name, overwrite=True)


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "p").mkdir()
    artifact.save(prompt(reference.backbone("llama")), tmp_path / "p")
    assert artifact.load(tmp_path / "p").values.tokens == 4


def test_a_failed_save_leaves_the_old_prompt_whole(folder, monkeypatch):
    before = contents(folder)
    monkeypatch.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(SaveError, match=r"No space left on device.*What stood there before is whole"):
        artifact.save(prompt(reference.backbone("llama"), seed=5), folder, overwrite=True)
    assert contents(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
