"""Encoders and encoder-decoders are taken in for what they are, from whatever folder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, BertConfig, BertLMHeadModel, T5EncoderModel
from transformers.utils import logging

import reference
import tiny
import toys
from reference import assert_close
from softprompt.answer.engine import Engine
from softprompt.backbone.attention import Record
from softprompt.backbone.backbone import Backbone
from softprompt.errors import SourceError
from softprompt.learn.training import train
from softprompt.prompts import PrefixTuning
from softprompt.text.task import Task

ALL = (*tiny.ENCODERS, *tiny.ENCODER_DECODERS)


def saved(folder, family: str, model=None):
    (model or tiny.model(family)).save_pretrained(folder)
    tiny.tokenizer_of(family).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ALL)
def test_it_is_what_it_was_when_it_is_loaded_from_a_folder(tmp_path, family):
    made, loaded = reference.backbone(family), Backbone.load(saved(tmp_path / "m", family))
    kind = "encoder" if family in tiny.ENCODERS else "encoder-decoder"
    for backbone in (made, loaded):
        assert (backbone.kind, backbone.speaks, backbone.lowers) == (kind, True, False)
        assert (backbone.pads_in_front, backbone.state_size) == (False, 32)
        assert backbone.hidden_size == (16 if family in ("electra", "albert") else 32)
    assert loaded.fingerprint == made.fingerprint
    assert loaded.tokenizer_fingerprint == made.tokenizer_fingerprint
    assert loaded.positions == made.positions
    assert loaded.decoder_start == made.decoder_start
    assert loaded.site_shapes == made.site_shapes


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_decoder_is_none_of_them(tmp_path, family):
    backbone = Backbone.load(saved(tmp_path / "m", family))
    assert (backbone.kind, backbone.pads_in_front, backbone.decoder_start) == ("decoder", True, ())


@pytest.mark.parametrize("family", tiny.ENCODERS)
@torch.no_grad()
def test_an_encoder_without_its_head_encodes(tmp_path, family):
    model = tiny.model(family)
    loaded = Backbone.load(saved(tmp_path / "m", family, model.base_model))
    whole = reference.backbone(family)
    assert (loaded.kind, loaded.speaks, loaded.state_size) == ("encoder", False, 32)
    task = Task("{text}", kind="feature-extraction")
    vectors = []
    for backbone in (loaded, whole):
        engine = Engine(backbone)
        engine.add("p", toys.prompt(backbone, task))
        vectors.append(torch.tensor([a.vector for a in engine.embed([("p", row) for row in toys.ROWS])]))
    assert_close(vectors[0], vectors[1])
    with pytest.raises(SourceError, match=r"it has no language modelling head.*feature-extraction"):
        toys.learn(loaded, toys.task_of("classification", loaded))


@pytest.mark.parametrize(
    ("family", "named", "kind"),
    [
        ("bert", "BertForMaskedLM", "encoder"),
        ("bert", "BertModel", "encoder"),
        ("bert", "BertForSequenceClassification", "encoder"),
        ("bert", None, "encoder"),
        ("roberta", "RobertaForMaskedLM", "encoder"),
        ("t5", "T5ForConditionalGeneration", "encoder-decoder"),
        ("bart", None, "encoder-decoder"),
        ("llama", None, "decoder"),
    ],
)
def test_which_class_reads_it_is_told_by_the_configuration(tmp_path, family, named, kind):
    folder = tmp_path / "m"
    saved(folder, family)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [named] if named else None
    (folder / "config.json").write_text(json.dumps(config))
    assert Backbone.load(str(folder)).kind == kind


def test_a_bert_that_was_made_a_decoder_is_one(tmp_path):
    torch.manual_seed(0)
    model = BertLMHeadModel(BertConfig(**tiny.SHAPE, is_decoder=True))
    model.save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for named in ("BertLMHeadModel", "BertForMaskedLM"):
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"architectures": [named]}))
        backbone = Backbone.load(str(tmp_path / "m"))
        assert (backbone.kind, backbone.speaks) == ("decoder", True)
        assert type(backbone.model) is BertLMHeadModel
    assert toys.learn(backbone, steps=1).prompt.values.tokens == 4


def test_weights_that_lack_a_layer_are_refused(tmp_path):
    for family, name in (
        ("bert", "bert.encoder.layer.1.attention.self.key.weight"),
        ("t5", "decoder.final_layer_norm"),
    ):
        folder = tmp_path / family
        saved(folder, family)
        tensors = load_file(folder / "model.safetensors")
        gone = [n for n in tensors if n.startswith(name)]
        save_file({n: t for n, t in tensors.items() if n not in gone}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(SourceError, match=rf"its files lack weights of a .*{name}"):
            Backbone.load(str(folder))


def test_what_cannot_answer_is_refused_by_name(tmp_path):
    model = T5EncoderModel(tiny.model("t5").config)
    model.config.is_encoder_decoder = False
    with pytest.raises(SourceError):
        Backbone.load(saved(tmp_path / "m", "t5", model))
    with pytest.raises(SourceError, match="no language modelling head, so it cannot answer"):
        Backbone(AutoModel.from_config(tiny.model("t5").config), tiny.tokenizer_of("t5"), "bare")


def test_where_a_decoder_begins():
    starts = {family: reference.backbone(family).decoder_start for family in (*tiny.ENCODER_DECODERS, "bert", "llama")}
    # Bart's own beginning of a text follows what its configuration says; T5 has none.
    assert starts == {"t5": (2,), "mt5": (2,), "bart": (1, 0), "bert": (), "llama": ()}
    model = tiny.model("t5")
    model.config.decoder_start_token_id = None
    assert Backbone(model, tiny.tokenizer_of("t5")).decoder_start == (model.config.pad_token_id,)


def test_positions_that_are_reserved_are_no_tokens():
    bounds = {family: reference.backbone(family).positions for family in ALL}
    assert bounds["roberta"] == tiny.POSITIONS - 3  # behind the padding token's number, 2
    assert bounds["t5"] is bounds["mt5"] is None
    assert {bounds[family] for family in ALL if family not in ("roberta", "t5", "mt5")} == {tiny.POSITIONS}


@pytest.mark.parametrize("family", [f for f in ALL if f not in ("t5", "mt5")])
def test_a_row_as_long_as_the_model_is_answered(family):
    backbone = reference.backbone(family)
    task = toys.task_of("sequence-classification", backbone)
    engine = Engine(backbone)
    engine.add("p", toys.prompt(backbone, task))
    (answer,) = engine.classify([("p", {"text": "won " * 300})])
    assert answer.cut > 150
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_states_narrower_than_the_layers_are_measured():
    torch.manual_seed(0)
    config = AutoConfig.for_model("opt", **tiny.SHAPE, ffn_dim=48, word_embed_proj_dim=16)
    backbone = Backbone(AutoModelForCausalLM.from_config(config), tiny.tokenizer(), "narrow")
    assert (backbone.hidden_size, backbone.state_size) == (16, 16)
    task = toys.task_of("sequence-classification", backbone)
    assert toys.learn(backbone, task, steps=1).prompt.head.weight.shape == (2, 16)


@pytest.mark.parametrize("family", [*ALL, "llama", "gpt2"])
@torch.no_grad()
def test_half_precision_agrees_loosely(tmp_path, family):
    folder = saved(tmp_path / "m", family)
    low, high = (Backbone.load(folder, dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert low.dtype == torch.bfloat16
    assert (low.kind, low.fingerprint) == (high.kind, high.fingerprint)
    vectors = []
    for backbone in (low, high):
        engine = Engine(backbone)
        engine.add("p", toys.prompt(high, Task("{soft:3}{text}", kind="feature-extraction")))
        vectors.append(torch.tensor([a.vector for a in engine.embed([("p", row) for row in toys.ROWS])]))
    assert float(torch.cosine_similarity(*vectors, dim=1).min()) > 0.98


@pytest.mark.parametrize("family", [*ALL, "llama"])
@torch.no_grad()
def test_keys_and_values_of_words_are_those_of_the_plain_model(family):
    """At all three kinds of site of an encoder-decoder."""
    backbone = reference.backbone(family)
    ids = torch.tensor([5, 80, 33, 120])
    keys, values = backbone.attended(backbone.embed(ids))
    assert len(keys) == len(values) == len(backbone.sites)
    model = tiny.model(family).requires_grad_(False)
    own = Backbone(model, tiny.tokenizer_of(family), "recorded")
    record = Record()
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones(1, 4).long()}
    if backbone.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = ids[None]
    if own.kind != "encoder":
        inputs["use_cache"] = False
    own.step(positions=torch.arange(4)[None], context=None, record=record, **inputs)
    for site in range(len(keys)):
        assert_close(keys[site], record.keys[site][0].transpose(0, 1))
        assert_close(values[site], record.values[site][0].transpose(0, 1))
    if backbone.kind == "encoder-decoder":
        names = [site.name for site in backbone.sites]
        assert sum("encoder." in n and "decoder" not in n for n in names) > 0
        cross = [n for n in names if "EncDec" in n or "encoder_attn" in n]
        assert 0 < len(cross) < sum("decoder" in n for n in names)


def starts(backbone: Backbone, **settings) -> list[torch.Tensor]:
    """Keys and values a prefix starts from, site by site."""
    task, method = toys.task_of("classification", backbone, soft=""), PrefixTuning(**settings)
    return list(toys.learn(backbone, task, method=method, steps=1).prompt.state.start.values())


def left(backbone: Backbone, ids: torch.Tensor) -> list[torch.Tensor]:
    """Keys and values of words, likewise."""
    keys, values = backbone.attended(backbone.embed(ids))
    return [t for pair in zip(keys, values, strict=True) for t in pair]


@pytest.mark.parametrize("family", ["t5", "bart", "bert"])
def test_a_prefix_starts_from_the_keys_and_values_of_words(family):
    backbone = reference.backbone(family)
    ids = backbone.tokenizer("the team won", add_special_tokens=False)["input_ids"]
    found = starts(backbone, tokens=3, init="text", text="the team won")
    assert len(found) == 2 * len(backbone.sites)
    for got, wanted in zip(found, left(backbone, torch.tensor(ids)), strict=True):
        assert_close(got, wanted)
    for init in ("vocabulary", "labels"):
        tensors = starts(backbone, tokens=3, init=init)
        assert [t.shape for t in tensors] == [t.shape for t in found]
        assert all(bool(t.any()) for t in tensors)


@pytest.mark.parametrize("family", ["t5", "bart", "bert"])
def test_the_mlp_of_a_prefix_is_fitted_to_words(family):
    backbone = reference.backbone(family)
    words = {"tokens": 3, "init": "text", "text": "the team won"}
    direct, written = starts(backbone, **words), starts(backbone, **words, projection=True, middle=64)
    error, scale = (sum(float(t.square().sum()) for t in ts) for ts in (map(torch.sub, direct, written), direct))
    assert error < 0.2 * scale


def test_an_encoder_without_its_head_is_loaded_without_alarm(tmp_path, caplog, capfd):
    folder = saved(tmp_path / "m", "bert", tiny.model("bert").base_model)
    before = logging.get_verbosity()
    Backbone.load(folder)
    assert logging.get_verbosity() == before
    assert not caplog.records
    assert "MISSING" not in capfd.readouterr().err


def test_a_cloze_for_the_embedding_model_is_refused_with_what_to_use_instead(minilm):
    task = Task("{text} It is about {mask}.", {"a": "sport", "b": "money"})
    with pytest.raises(SourceError, match=r"minilm: it has no language modelling head.*sequence-classification") as no:
        train(minilm, task, PrefixTuning(tokens=3), [{"text": "x", "label": "a"}], progress=False)
    assert "Use a task with a trained head" in no.value.instead
