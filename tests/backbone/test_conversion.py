"""GGUF to safetensors, once. The conversion itself is tried on a tiny file; the real one is in the cache."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from softprompt.backbone import conversion, sources
from softprompt.errors import SourceError

FILES = {name: f"content of {name}" for name in conversion._FILES}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"weights")
    return path


class Writer:
    """Stands for the conversion proper: writes the files, or stops half-way."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.calls = error, 0

    def __call__(self, gguf: Path, folder: Path) -> None:
        self.calls += 1
        for number, (name, content) in enumerate(FILES.items()):
            if self.error is not None and number == 2:
                raise self.error
            (folder / name).write_text(content)


@pytest.fixture
def writer(monkeypatch) -> Writer:
    made = Writer()
    monkeypatch.setattr(conversion, "_write", made)
    return made


def standing(cache: Path) -> list[str]:
    """What is in the cache, the file of the lock left out."""
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock")


def check_whole(folder: Path) -> None:
    assert {p.name: p.read_text() for p in folder.iterdir()} == FILES


def test_it_is_converted_once(cache, source, writer, capsys):
    folder = conversion.convert(source, "small")
    check_whole(folder)
    assert "Converting weights.gguf for small (once; kept in" in capsys.readouterr().err
    assert conversion.convert(source, "small") == folder
    assert writer.calls == 1
    assert standing(cache) == [folder.name]
    assert capsys.readouterr() == ("", "")


def test_other_weights_or_another_version_are_converted_anew(cache, source, writer, monkeypatch):
    first = conversion.convert(source, "small")
    source.write_bytes(b"other weights")
    second = conversion.convert(source, "small")
    monkeypatch.setattr(conversion, "VERSION", conversion.VERSION + 1)
    third = conversion.convert(source, "small")
    assert standing(cache) == sorted({first.name, second.name, third.name})
    assert writer.calls == 3


def test_a_whole_conversion_is_used_where_the_cache_cannot_be_written_to(cache, source, writer, monkeypatch):
    folder = conversion.convert(source, "small")
    monkeypatch.setattr(filelock, "FileLock", None)
    assert conversion.convert(source, "small") == folder


@pytest.mark.parametrize("name", conversion._FILES)
def test_a_conversion_that_lacks_a_file_is_done_again(cache, source, writer, name):
    folder = conversion.convert(source, "small")
    (folder / name).unlink()
    (folder / "left").touch()
    check_whole(conversion.convert(source, "small"))


def test_what_a_killed_process_left_is_cleaned_up(cache, source, writer):
    folder = conversion.convert(source, "small")
    folder.rename(folder.with_name(f".{folder.name}.partial"))
    (folder.with_name(f".{folder.name}.partial") / "half").touch()
    check_whole(conversion.convert(source, "small"))
    assert standing(cache) == [folder.name]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyError("blk.0"), RuntimeError("size mismatch")], ids=repr
)
def test_a_failing_conversion_leaves_nothing_and_says_where(cache, source, writer, error):
    writer.error = error
    with pytest.raises(SourceError) as refused:
        conversion.convert(source, "small")
    assert standing(cache) == []
    assert refused.value.where == "small"
    assert str(error) in refused.value.what
    assert str(source) in refused.value.what
    assert "SOFTPROMPT_CACHE can name another folder" in refused.value.instead
    writer.error = None
    check_whole(conversion.convert(source, "small"))


def test_ctrl_c_leaves_nothing_and_goes_on_up(cache, source, writer):
    writer.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(source, "small")
    assert standing(cache) == []


def test_whoever_stops_waiting_leaves_the_others_work_alone(cache, source, writer, monkeypatch):
    folder = conversion.convert(source, "small")
    others = folder.rename(folder.with_name(f".{folder.name}.partial"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(filelock.FileLock, "__enter__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(source, "small")
    check_whole(others)


def test_of_several_at_once_one_converts_and_all_get_it(cache, source, writer, monkeypatch):
    begun = threading.Barrier(3)
    is_whole = conversion._is_whole

    def together(folder: Path) -> bool:
        found = is_whole(folder)
        if threading.current_thread().name not in waited:
            waited.add(threading.current_thread().name)
            begun.wait(10)  # all have seen that nothing is there
        return found

    waited: set[str] = set()
    monkeypatch.setattr(conversion, "_is_whole", together)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: conversion.convert(source, "small"), range(3)))
    assert len(folders) == 1
    assert writer.calls == 1
    check_whole(folders.pop())


def test_a_file_that_cannot_be_read_is_refused(cache, source):
    source.unlink()
    with pytest.raises(SourceError, match=r"weights.gguf could not be converted"):
        conversion.convert(source, "small")


def test_a_file_that_is_no_gguf_is_refused(cache, source):
    with pytest.raises(SourceError, match=r"weights.gguf could not be converted") as refused:
        conversion.convert(source, "small")
    assert refused.value.__cause__ is not None
    assert standing(cache) == []


def test_a_cache_that_cannot_be_made_is_refused(source, tmp_path, monkeypatch, writer):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(source / "cache"))
    with pytest.raises(SourceError, match=r"could not be converted into .*weights.gguf/cache"):
        conversion.convert(source, "small")


def test_the_cache_is_in_the_home_unless_said_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (None, ""):
        monkeypatch.delenv("SOFTPROMPT_CACHE", raising=False)
        if value is not None:
            monkeypatch.setenv("SOFTPROMPT_CACHE", value)
        assert conversion.cache_folder() == tmp_path / ".cache" / "softprompt"
    monkeypatch.setenv("SOFTPROMPT_CACHE", "~/elsewhere")
    assert conversion.cache_folder() == tmp_path / "elsewhere"


# The conversion proper


def write_gguf(path: Path, pre: str) -> dict[str, torch.Tensor]:
    """The tiny Llama, its matrices quantized, with the tiny tokenizer; returns the weights that it then has."""
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    learned = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(learned["vocab"], key=learned["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(words) - 3))
    writer.add_token_merges([" ".join(pair) for pair in learned["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    weights = {}
    for name, tensor in model.state_dict().items():
        stem, _, ending = name.rpartition(".")
        data = tensor.numpy()
        kind = gguf.GGMLQuantizationType.F32
        if data.ndim == 2 and data.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q4_1
        weights[name] = torch.tensor(gguf.dequantize(gguf.quantize(data, kind), kind))
        if stem.endswith(("q_proj", "k_proj")):
            # llama.cpp keeps the halves of a rotary pair next to each other.
            heads = data.shape[0] // config.head_dim
            data = data.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(data.shape)
        blocks = gguf.quantize(np.ascontiguousarray(data), kind)
        writer.add_tensor(f"{names.get_name(stem)}.{ending}", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.mark.parametrize(("pre", "split"), [("smollm", ["in", "Ġ", "2", "0", "2", "4"]), ("gpt-2", ["in", "Ġ2024"])])
def test_a_gguf_file_becomes_a_folder_that_loads_as_any_other(cache, tmp_path, pre, split, capfd):
    weights = write_gguf(tmp_path / "tiny.gguf", pre)
    folder = conversion.convert(tmp_path / "tiny.gguf", "tiny")
    assert len(capfd.readouterr().err.splitlines()) == 1

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not hasattr(model.config, "quantization_config")
    loaded = model.state_dict()
    assert loaded.keys() == weights.keys()
    for name, weight in weights.items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight), name

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == tiny.POSITIONS
    text = "Article: the team won the match\nTopic: sports"
    assert tokenizer(text)["input_ids"] == tiny.tokenizer()(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    # The file says how digits are split off, and transformers' reader does not listen.
    assert [part for part, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 2024")] == split


def test_smollm2_splits_digits_off_as_the_original_does():
    tokenizer = AutoTokenizer.from_pretrained(sources.resolve("smollm2").folder)
    for text, tokens in {
        "in 2024": ["in", "Ġ", "2", "0", "2", "4"],
        "2024": ["2", "0", "2", "4"],
        "a1b": ["a", "1", "b"],
        "won 3-0,": ["won", "Ġ", "3", "-", "0", ","],
        "the team": ["the", "Ġteam"],
    }.items():
        assert tokenizer.tokenize(text) == tokens
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
