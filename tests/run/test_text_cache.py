from __future__ import annotations

import logging
import os
import random
import threading
import time
from pathlib import Path

import pytest
import torch

import reference
import tiny
import toys
from reference import assert_close, case
from softprompt import Backbone, PromptTuning, Task, TextCache
from softprompt.backbone.context import Stretch
from softprompt.errors import OutputError, SettingsError
from softprompt.run.forward import Forward
from softprompt.run.loss import answer_loss

BEHIND = ["behind", "middle", "two", "no-slot", "text-alone"]
TASK = Task("Article: {text}{soft:3}\nTopic: {label}", toys.LABELS)


def cached(cache, family: str = "llama", **more) -> Backbone:
    """A backbone of its own, with the weights that all of its family have."""
    return Backbone(tiny.model(family), reference.backbone(family).tokenizer, family, cache=cache, **more)


def read_ahead(backbone, budget: int = 2**40) -> tuple[Forward, int, int]:
    """Reads the texts of some templates; how many are left to be read again, and how many were found."""
    forward = Forward(backbone, budget=budget)
    plans = [forward.plan(e) for e in case(BEHIND, backbone).examples]
    left = forward.reader.read_ahead(plans)
    return forward, left, forward.reader.found


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def losses(forward: Forward, backbone: Backbone) -> torch.Tensor:
    given = case(BEHIND, backbone)
    return answer_loss(*forward(given.examples, given.fillings, given.which))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_another_run_finds_what_one_has_read_to_the_last_bit(tmp_path, family):
    first = cached(tmp_path, family)
    one, left, found = read_ahead(first)
    assert (left, found) == (0, 0)
    texts = len(files(tmp_path))
    assert texts
    right = losses(one, first)
    assert_close(right, reference.loss(reference.plain(family), case(BEHIND, first)))
    second = cached(tmp_path, family)
    two, left, found = read_ahead(second)
    assert (left, found) == (0, texts)
    assert torch.equal(losses(two, second), right)


@pytest.mark.parametrize("budget", [0, 2**40])
def test_what_is_on_disk_takes_no_memory_and_is_not_read_again(tmp_path, budget):
    forward, left, _ = read_ahead(cached(tmp_path), budget)
    assert left == 0
    text = next(p for e in case(BEHIND, forward.backbone).examples if (p := forward.plan(e)).text)
    before, found = forward.reader.kept, forward.reader.found
    forward.reader.texts([text])
    heads = {p.head for e in case(BEHIND, forward.backbone).examples if (p := forward.plan(e)).text and p.head}
    assert before == forward.reader.kept == sum(forward.reader.head(head).nbytes for head in heads)
    assert forward.reader.found == found


def test_what_is_not_read_ahead_is_kept_on_disk_too(tmp_path):
    backbone = cached(tmp_path)
    forward = Forward(backbone)
    first = losses(forward, backbone)
    assert files(tmp_path)
    found = forward.reader.found
    assert torch.equal(losses(forward, backbone), first)
    assert forward.reader.found > found


def test_other_weights_another_dtype_and_another_template_find_nothing(tmp_path):
    read_ahead(cached(tmp_path))
    there = len(files(tmp_path))
    changed = tiny.model("llama")
    weight = changed.get_submodule("model.layers.1.self_attn.k_proj").weight
    with torch.no_grad():
        # One of all the numbers: not one that a sample would be sure to hold.
        weight[tuple(random.Random(0).randrange(size) for size in weight.shape)] += 1
    turned = tiny.model("llama")
    turned.model.rotary_emb.inv_freq.mul_(1.01)
    others = [
        Backbone(changed, reference.backbone("llama").tokenizer, cache=tmp_path),
        Backbone(turned, reference.backbone("llama").tokenizer, cache=tmp_path),
        # What it would be if it had been kept in 16 bits.
        Backbone(tiny.model("llama").bfloat16().float(), reference.backbone("llama").tokenizer, cache=tmp_path),
        Backbone(tiny.model("llama").bfloat16(), reference.backbone("llama").tokenizer, cache=tmp_path),
        cached(TextCache(tmp_path, dtype="bfloat16")),
    ]
    for number, other in enumerate(others, 2):
        assert read_ahead(other)[2] == 0
        assert len(files(tmp_path)) == number * there
    backbone, counts = cached(tmp_path), [len(files(tmp_path))]
    for opening in ("Article: ", "News: ", "Article: "):
        task = Task(opening + "{text}{soft:3}\nTopic: {label}", toys.LABELS)
        toys.learn(backbone, task, toys.ROWS, None, PromptTuning(), steps=1)
        counts.append(len(files(tmp_path)))
    assert counts[0] < counts[1] < counts[2] == counts[3]


def test_a_damaged_file_counts_as_none_and_is_written_anew(tmp_path):
    backbone = cached(tmp_path)
    right = losses(read_ahead(backbone)[0], backbone)
    there = files(tmp_path)
    whole = there[0].read_bytes()
    # The last value's name, in the header.
    at = whole.index(b'"value.1"') + 1
    damages = [
        whole[:at] + b"k" + whole[at + 1 :],
        whole[:-8] + b"\x00\x00\x80\x3f" * 2,
        whole[: len(whole) // 2],
        b"",
        b"no tensors at all" * 9,
    ]
    for damage in damages:
        for place in there:
            place.write_bytes(damage)
        forward, left, found = read_ahead(cached(tmp_path))
        assert (left, found) == (0, 0)
        assert torch.equal(losses(forward, backbone), right)
        assert files(tmp_path) == there
        assert there[0].read_bytes() == whole


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    cache = TextCache(tmp_path)
    shelf = cache.of("a model")
    stretch = reference.backbone("llama").read(
        torch.randn(1, 5, reference.backbone("llama").hidden_size), torch.ones(1, 5, dtype=torch.bool)
    )[0]
    assert shelf.keep((), (0,), stretch)
    size = files(tmp_path)[0].stat().st_size
    before = TextCache(tmp_path, max_bytes=4 * size + 1).of("a model")
    for number in range(1, 4):
        assert before.keep((), (number,), stretch)
    small = TextCache(tmp_path, max_bytes=4 * size + 1).of("a model")
    for age, number in enumerate((1, 3, 2, 0)):  # 1 is the oldest
        place = small._place((), (number,))
        os.utime(place, (1_000_000 + age, 1_000_000 + age))
    assert small.find((), (1,)) is not None  # used now
    assert small.keep((), (4,), stretch)
    strange = [tmp_path / name for name in ("model/model.safetensors", "texts-mine/notes.safetensors", "a.safetensors")]
    for place in strange:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(bytes(9 * size))
        os.utime(place, (1, 1))
    there = [number for number in range(5) if small.find((), (number,)) is not None]
    assert there == [0, 1, 4] or there == [1, 4]
    ours = TextCache(tmp_path, max_bytes=1).of("a model").folder
    assert sum(place.stat().st_size for place in files(ours)) <= 4 * size + 1
    # What else stands in the folder is not counted and not touched.
    assert TextCache(tmp_path, max_bytes=2 * size + 1).of("a model").keep((), (5,), stretch)
    assert all(place.stat().st_size == 9 * size for place in strange)
    assert not TextCache(tmp_path / "tiny", max_bytes=10).of("a model").keep((), (0,), stretch)


def a_stretch() -> Stretch:
    backbone = reference.backbone("llama")
    return backbone.read(torch.randn(1, 5, backbone.hidden_size), torch.ones(1, 5, dtype=torch.bool))[0]


def test_what_is_in_use_stays_and_then_nothing_more_is_kept(tmp_path, caplog):
    stretch = a_stretch()
    assert TextCache(tmp_path / "one").of("a model").keep((), (0,), stretch)
    size = files(tmp_path / "one")[0].stat().st_size
    shelf = TextCache(tmp_path, max_bytes=3 * size + 1).of("a model")
    assert [shelf.keep((), (number,), stretch) for number in range(6)] == [True] * 3 + [False] * 3
    assert all(shelf.find((), (number,)) is not None for number in range(3))
    assert caplog.text.count("no more texts are kept") == 1


def test_several_threads_may_keep_the_same(tmp_path, caplog):
    shelf, stretch = TextCache(tmp_path).of("a model"), a_stretch()
    writers = [
        threading.Thread(target=lambda: [shelf.keep((), (number,), stretch) for number in range(20)]) for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not caplog.text
    assert len(files(tmp_path)) == 20
    assert all(shelf.find((), (number,)) is not None for number in range(20))


def test_what_a_process_left_half_written_is_removed(tmp_path):
    shelf, stretch = TextCache(tmp_path).of("a model"), a_stretch()
    shelf.folder.mkdir()
    old, new = shelf.folder / "tmpa.partial", shelf.folder / "tmpb.partial"
    for place, age in ((old, 7200), (new, 1)):
        place.write_bytes(b"x")
        os.utime(place, (time.time() - age, time.time() - age))
    assert shelf.keep((), (0,), stretch)
    assert [place.exists() for place in (old, new)] == [False, True]


def test_kept_in_half_texts_take_half_and_differ_in_the_third_digit(tmp_path):
    right = losses(read_ahead(cached(tmp_path / "whole"))[0], reference.backbone("llama"))
    backbone = cached(TextCache(tmp_path / "half", dtype="bfloat16"))
    forward = read_ahead(backbone)[0]
    half = losses(forward, backbone)
    assert not torch.equal(half, right)
    torch.testing.assert_close(half, right, rtol=1e-2, atol=1e-2)
    whole, kept = (sum(place.stat().st_size for place in files(tmp_path / name)) for name in ("whole", "half"))
    assert kept < 0.8 * whole  # the rest is what the files say of themselves


def test_a_full_disk_costs_a_warning_and_nothing_else(tmp_path, monkeypatch, caplog):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    backbone = cached(tmp_path)
    forward, left, found = read_ahead(backbone)
    assert (left, found) == (0, 0)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert ["No space left on device" in record.getMessage() for record in warnings] == [True]
    assert not [place for place in tmp_path.rglob("*") if place.is_file()]
    assert_close(losses(forward, backbone), reference.loss(reference.plain("llama"), case(BEHIND, backbone)))


def test_a_folder_that_cannot_be_and_wrong_settings_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="folder that can be written"):
        TextCache(tmp_path / "file")
    with pytest.raises(SettingsError, match="max_bytes is 0"):
        TextCache(tmp_path, max_bytes=0)
    with pytest.raises(SettingsError, match="bfloat16"):
        TextCache(tmp_path, dtype="int8")
    with pytest.raises(SettingsError, match="Give a folder"):
        cached(7)


def test_trainings_share_their_texts_and_learn_the_same(tmp_path):
    plain, *others = (
        toys.learn(backbone, TASK, toys.ROWS, toys.ROWS, PromptTuning(), steps=4)
        for backbone in (reference.backbone("llama"), cached(tmp_path), cached(tmp_path))
    )
    assert [r.prompt.training["texts_from_cache"] for r in (plain, *others)][:2] == [0, 0]
    assert others[1].prompt.training["texts_from_cache"] == len(files(tmp_path))
    for other in others:
        assert torch.equal(other.prompt.values.at_input, plain.prompt.values.at_input)
