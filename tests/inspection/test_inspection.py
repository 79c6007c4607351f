from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

import reference
import tiny
from softprompt import artifact
from softprompt.errors import MismatchError, OutputError, SettingsError
from softprompt.inspection.measure import Inspection, Neighbour, VirtualToken, inspect
from softprompt.inspection.picture import draw, shown
from softprompt.prompts import HardPrompt
from softprompt.prompts.prompt import VirtualTokens
from softprompt.text.task import Task
from toys import LABELS, png_size, prompt

TWO_SLOTS = Task("{soft:2}{text}{soft:3}:{label}", LABELS)


def inspected(**options) -> Inspection:
    backbone = reference.backbone("llama")
    return inspect(prompt(backbone, TWO_SLOTS, trained=True), backbone, **options)


def test_there_is_one_entry_for_each_virtual_token_in_its_slot():
    assert [(t.index, t.slot) for t in inspected().tokens] == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]


def test_norms_and_drift_are_those_of_the_vectors():
    backbone = reference.backbone("llama")
    saved = prompt(backbone, TWO_SLOTS, trained=True)
    values, start = saved.values.embeddings, saved.state.start["embeddings"]
    for token, value, began in zip(inspect(saved, backbone).tokens, values, start, strict=True):
        assert token.norm == pytest.approx(float(value.square().sum().sqrt()), rel=1e-5)
        assert token.start_norm == pytest.approx(float(began.square().sum().sqrt()), rel=1e-5)
        assert token.drift == pytest.approx(float((value - began).square().sum().sqrt()), rel=1e-5)


def test_a_vector_is_nearest_to_the_words_it_was_made_of():
    backbone = reference.backbone("llama")
    ids = [300, 310, 42, 17, 305]
    saved = replace(prompt(backbone, TWO_SLOTS), values=VirtualTokens(backbone.embeddings[ids].clone() * 3))
    for token, i in zip(inspect(saved, backbone, nearest=4).tokens, ids, strict=True):
        assert token.nearest[0].token == backbone.tokenizer.decode([i])
        assert token.nearest[0].cosine == pytest.approx(1, abs=1e-5)
        cosines = [n.cosine for n in token.nearest]
        assert cosines == sorted(cosines, reverse=True)
        assert len(cosines) == 4


def test_the_vocabulary_is_measured_for_comparison():
    norms = reference.backbone("llama").embeddings[: len(tiny.tokenizer())].norm(dim=-1)
    wanted = torch.quantile(norms, torch.tensor([0.05, 0.5, 0.95])).tolist()
    assert inspected().vocabulary_norms == pytest.approx(wanted)


def test_without_its_start_a_prompt_has_no_drift(tmp_path):
    backbone = reference.backbone("llama")
    artifact.save(prompt(backbone, TWO_SLOTS, trained=True), tmp_path / "p")
    served, whole = (inspect(artifact.load(tmp_path / "p", training=t), backbone) for t in (False, True))
    assert {t.drift for t in served.tokens} == {None}
    assert whole == inspected()


def test_text_alone_has_no_virtual_token():
    backbone = reference.backbone("llama")
    assert inspect(prompt(backbone, Task("{text}{label}"), method=HardPrompt()), backbone).tokens == ()


def test_more_neighbours_than_words_are_all_words():
    assert len(inspected(nearest=10_000).tokens[0].nearest) == len(tiny.tokenizer())


def test_what_cannot_be_inspected_is_refused():
    with pytest.raises(SettingsError, match="nearest is 0"):
        inspected(nearest=0)
    with pytest.raises(MismatchError):
        inspect(prompt(reference.backbone("llama")), tiny.backbone(seed=1))


@pytest.mark.parametrize("known", [True, False], ids=["with its start", "without"])
def test_the_picture_is_a_png_that_grows_with_the_prompt(tmp_path, known):
    inspection = inspected()
    if not known:
        inspection = replace(
            inspection, tokens=tuple(replace(t, drift=None, start_norm=None) for t in inspection.tokens)
        )
    many = replace(inspection, tokens=tuple(replace(inspection.tokens[0], index=i) for i in range(40)))
    sizes = []
    for which in (inspection, many):
        draw(which, "title", tmp_path / "picture")
        sizes.append(png_size((tmp_path / "picture").read_bytes()))
    (width, height), (same_width, taller) = sizes
    assert width == same_width > 1000
    assert 400 < height < taller


def test_tokens_of_any_script_are_drawn_without_a_warning(tmp_path):
    tokens = tuple(
        VirtualToken(i, 0, 1.0, 1.0, 0.0, (Neighbour(token, 0.5),))
        for i, token in enumerate(["$x^", "雨", "\n", "\x00"])
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(Inspection(tokens, (1.0, 2.0, 3.0)), "100 $ and _", tmp_path / "p.png")
    assert png_size((tmp_path / "p.png").read_bytes())


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(OutputError, match="no virtual token to draw"):
        draw(Inspection((), (1.0, 2.0, 3.0)), "title", tmp_path / "p.png")
    with pytest.raises(OutputError, match=r"nowhere.*cannot be written"):
        draw(inspected(), "title", tmp_path / "nowhere" / "p.png")


@pytest.mark.parametrize(
    ("token", "seen"), [(" the", "␣the"), ("\n", "\\n"), ("é", "é"), ("\x00", "\\x00"), ("a b", "a␣b")]
)
def test_blanks_and_control_characters_of_a_token_are_seen(token, seen):
    assert shown(token) == seen
