from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import reference
import tiny
from reference import assert_close
from softprompt.backbone.backbone import Backbone
from softprompt.backbone.context import Context
from softprompt.errors import SettingsError, SourceError

LENGTHS = (1, 4, 9)
WIDTH = max(LENGTHS)


def embedded(backbone, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return backbone.embed(torch.randint(3, tiny.VOCABULARY, (1, length), generator=generator))


def padded(backbone, side):
    """Rows of several lengths in one batch, with noise where they are padded."""
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(len(LENGTHS), WIDTH, backbone.hidden_size, generator=generator)
    mask = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        at = slice(WIDTH - length, WIDTH) if side == "left" else slice(0, length)
        batch[row, at] = embedded(backbone, length, seed=length)[0]
        mask[row, at] = True
    return batch, mask


@torch.no_grad()
def read(backbone, length):
    """A stretch of this length, and the embeddings it was read from."""
    inputs = embedded(backbone, length, seed=100 + length)
    (stretch,) = backbone.read(inputs, torch.ones(1, length, dtype=torch.bool))
    return stretch, inputs


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("before", [(), (3,), (8,), (2, 5, 7), (7, 0, 2)], ids=str)
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(family, side, before):
    backbone, plain = reference.backbone(family), reference.plain(family)
    read_before = [read(backbone, n) if n else None for n in before]
    context = Context.of([[] if r is None else [r[0]] for r in read_before])
    batch, mask = padded(backbone, side)
    found = backbone.logits(batch, mask, context, keep=WIDTH)
    for row, length in enumerate(LENGTHS):
        own = batch[row][mask[row]][None]
        r = read_before[row % len(before)] if before else None
        sequence = own if r is None else torch.cat([r[1], own], dim=1)
        assert_close(found[row][mask[row]], plain(inputs_embeds=sequence).logits[0, -length:])


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_what_is_read_from_a_padded_batch_is_what_each_row_leaves_alone(family, side):
    backbone = reference.backbone(family)
    context = Context.of([[read(backbone, 3)[0]]])
    batch, mask = padded(backbone, side)
    for row, stretch in enumerate(backbone.read(batch, mask, context)):
        own = batch[row][mask[row]][None]
        (alone,) = backbone.read(own, torch.ones(own.shape[:2], dtype=torch.bool), context)
        assert stretch.length == LENGTHS[row]
        for got, wanted in zip((*stretch.keys, *stretch.values), (*alone.keys, *alone.values), strict=True):
            assert_close(got, wanted)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@torch.no_grad()
def test_reading_in_pieces_is_reading_at_once(family):
    backbone = reference.backbone(family)
    inputs, mask = embedded(backbone, 12), torch.ones(1, 12, dtype=torch.bool)
    (whole,) = backbone.read(inputs, mask)
    (first,) = backbone.read(inputs[:, :5], mask[:, :5])
    (second,) = backbone.read(inputs[:, 5:], mask[:, 5:], Context.of([[first]]))
    for a, b, c in zip(first.keys, second.keys, whole.keys, strict=True):
        assert_close(torch.cat([a, b]), c)
    for a, b, c in zip(first.values, second.values, whole.values, strict=True):
        assert_close(torch.cat([a, b]), c)


@torch.no_grad()
def test_rows_read_the_entries_they_name():
    backbone, plain = reference.backbone("gpt2"), reference.plain("gpt2")
    entries = [read(backbone, n) for n in (2, 6)]
    own = embedded(backbone, 3)
    rows = torch.tensor([1, 0, 1, 1])
    found = backbone.logits(
        own.expand(4, -1, -1),
        torch.ones(4, 3, dtype=torch.bool),
        Context.of([[stretch] for stretch, _ in entries]),
        rows,
        keep=3,
    )
    for got, entry in zip(found, rows.tolist(), strict=True):
        wanted = plain(inputs_embeds=torch.cat([entries[entry][1], own], dim=1)).logits[0, -3:]
        assert_close(got, wanted)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.UNROUTED, "deepseek_v3"])
def test_taking_a_model_in_freezes_it_and_changes_nothing_it_computes(family):
    model = tiny.model(family).train()
    backbone = Backbone(model, tiny.tokenizer())
    ids = torch.arange(3, 15)[None]
    assert torch.equal(backbone.model(ids).logits, reference.plain(family)(ids).logits)
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(m.training for m in model.modules())
    assert backbone.lowers == (family not in tiny.UNROUTED)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_recomputing_leaves_eval_mode_and_no_gradient_of_the_embeddings(family):
    backbone = tiny.backbone(family, gradient_checkpointing=True)
    before = reference.state(backbone.model)
    assert not backbone.embed(torch.arange(3)[None]).requires_grad
    inputs = embedded(backbone, 4).requires_grad_()
    logits = backbone.logits(inputs, torch.ones(1, 4, dtype=torch.bool), keep=4)
    assert reference.state(backbone.model) == before
    logits.sum().backward()
    with reference.failing(reference.last_site(backbone)):
        backbone.logits(inputs, torch.ones(1, 4, dtype=torch.bool), keep=4)
    assert reference.state(backbone.model) == before
    assert not any(before["training"].values())


def test_recomputing_goes_with_inference_mode():
    backbone = tiny.backbone("llama", gradient_checkpointing=True)
    with torch.inference_mode():
        logits = backbone.logits(embedded(backbone, 4), torch.ones(1, 4, dtype=torch.bool), keep=4)
    assert_close(logits.clone(), reference.plain("llama")(inputs_embeds=embedded(backbone, 4)).logits)


def test_keys_that_change_with_the_length_are_not_lowered():
    model = tiny.model("llama")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert not Backbone(type(model)(model.config), tiny.tokenizer()).lowers


def test_a_model_that_looks_ahead_is_refused():
    model = tiny.model("llama")
    model.model.layers[0].register_forward_hook(lambda _, args, out: out + out.mean(dim=1, keepdim=True))
    with pytest.raises(SourceError, match=r"tiny \(LlamaForCausalLM\): not a causal language model.*smollm2"):
        Backbone(model, tiny.tokenizer(), "tiny")


def test_a_model_that_does_not_heed_padding_is_refused():
    model = tiny.model("llama")
    model.model.layers[0].register_forward_hook(lambda _, args, out: out + out.cumsum(dim=1))
    with pytest.raises(SourceError, match=r"LlamaForCausalLM.*when its row is padded"):
        Backbone(model, tiny.tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.UNROUTED, "deepseek_v3"])
def test_every_decoder_is_taken_in_in_every_dtype(family, dtype):
    assert Backbone(tiny.model(family).to(dtype), tiny.tokenizer()).dtype == dtype


@pytest.mark.parametrize("family", ["llama", *tiny.UNROUTED])
def test_where_every_row_is_computed_whole_a_line_says_so(family, caplog):
    tiny.backbone(family)
    said = [r for r in caplog.records if r.name == "softprompt"]
    assert len(said) == (family != "llama")
    if said:
        assert said[0].levelname == "WARNING"
        assert f"tiny-{family} " in said[0].getMessage()
        assert "computed in every row" in said[0].getMessage()


def test_an_unknown_dtype_is_refused():
    with pytest.raises(SettingsError, match="float64"):
        Backbone.load("smollm2", dtype="float64")


def test_a_saved_model_is_the_same_when_loaded(tmp_path):
    made = reference.backbone("llama")
    tiny.model("llama").save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = Backbone.load(str(tmp_path), device="cpu")
    assert loaded.fingerprint == made.fingerprint
    assert loaded.tokenizer_fingerprint == made.tokenizer_fingerprint
    assert loaded.dtype == torch.float32
    assert Backbone.load(str(tmp_path), dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    ids = torch.arange(6)[None]
    assert torch.equal(loaded.model(ids).logits, made.model(ids).logits)


def test_a_device_that_is_not_there_is_refused():
    for device in ("nope", "cuda:999"):
        with pytest.raises(SettingsError, match=rf"device '{device}' cannot be used"):
            Backbone.load("smollm2", device=device)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "llama"])
def test_tied_weights_are_not_missed(family, tmp_path):
    tiny.model(family).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert Backbone.load(str(tmp_path), device="cpu").fingerprint == reference.backbone(family).fingerprint


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_folder_without_all_weights_is_refused(dtype, tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    model = tiny.model("llama")
    kept = {name: t for name, t in model.state_dict().items() if "layers.1.self_attn" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(SourceError, match=r"lack weights.*model\.layers\.1\.self_attn\.k_proj\.weight.* and 1 more"):
        Backbone.load(str(tmp_path), dtype=dtype, device="cpu")


def test_an_encoder_without_a_head_is_loaded_without_one(tmp_path):
    AutoModel.from_config(AutoConfig.for_model("bert", **tiny.SHAPE)).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    backbone = Backbone.load(str(tmp_path), device="cpu")
    assert (backbone.kind, backbone.speaks) == ("encoder", False)


def test_weights_of_other_shapes_are_refused(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(SourceError, match="cannot be loaded"):
        Backbone.load(str(tmp_path), device="cpu")


@pytest.mark.parametrize("left", [0, 5, 1000])
def test_weights_that_were_cut_off_are_refused(left, tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(SourceError, match=r"damaged or cut off.*again"):
        Backbone.load(str(tmp_path), device="cpu")


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(SourceError, match="cannot be loaded as a language model"):
        Backbone.load(str(tmp_path), device="cpu")


def test_what_a_backbone_tells_of_itself():
    backbone = reference.backbone("gpt2")
    assert backbone.hidden_size == 32
    assert backbone.positions == tiny.POSITIONS
    assert backbone.embeddings.shape == (tiny.VOCABULARY, 32)
    assert backbone.device == torch.device("cpu")
    assert backbone.name == "tiny-gpt2"


def test_embeddings_are_scaled_as_the_model_scales_them():
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1}
    config = AutoConfig.for_model("gemma", **shape, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    backbone = Backbone(AutoModelForCausalLM.from_config(config), tiny.tokenizer())
    ids = torch.arange(3, 9)[None]
    found = backbone.logits(backbone.embed(ids), torch.ones(1, 6, dtype=torch.bool), keep=6)
    assert_close(found, backbone.model(ids).logits)


def test_threads_that_share_a_backbone_get_their_own_answers():
    backbone = tiny.backbone("llama")
    batches = [torch.randint(5, 300, (3, length), generator=torch.Generator().manual_seed(length)) for length in (4, 9)]

    def states(ids, at):
        mask = torch.ones(ids.shape, dtype=torch.bool)
        return backbone.outputs(backbone.embed(ids), mask, at=torch.full((3, 1), at)).states

    asked = [(ids, at) for ids in batches for at in range(4)] * 20
    with torch.no_grad(), ThreadPoolExecutor(8) as threads:
        right = [states(*one) for one in asked]
        found = list(threads.map(lambda one: states(*one), asked))
    for mine, theirs in zip(found, right, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_real_decoder_reads_what_was_computed_once(dtype, caplog):
    backbone = Backbone.load("smollm2", device="cpu", dtype=dtype)
    assert backbone.lowers
    assert not caplog.messages
