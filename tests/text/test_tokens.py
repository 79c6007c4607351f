"""What a model reads must be what its tokenizer would have given for the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

import tiny
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task
from softprompt.text.tokens import PieceTokenizer

TEMPLATES = [
    "Article: {text}\nTopic: {label}",
    "{text}\nTopic: {label}",
    "{text} {other}: {label}",
    "The team ({other}) won, {text} twice.\n\nTitle: {label}",
    "Topic:{label}",
]
ROW = {"text": "the market fell", "other": "business", "label": "the team won"}


def pieces(tokenizer: PreTrainedTokenizerBase, template: str, row: dict[str, str] = ROW) -> list[int]:
    """Everything the model is given, end-of-text token left out."""
    example = ExampleMaker(Task(template), tokenizer)(row)
    assert example.target[-1] == tokenizer.eos_token_id
    return [*example.tokens, *example.target[:-1]]


@pytest.mark.parametrize("template", [*TEMPLATES, "In 2024 {text} 35 times: {other} {label}", "{text}{label}"])
def test_pieces_join_to_the_whole_text_byte_level(byte_level, template):
    row = {"text": "In 1999 they won 3-0, don't they?", "other": "서울 2002", "label": " 42 (or so)"}
    assert pieces(byte_level, template, row) == byte_level(template.format(**row))["input_ids"]


@pytest.mark.parametrize("template", TEMPLATES)
def test_pieces_join_to_the_whole_text_metaspace(metaspace, template):
    assert pieces(metaspace, template) == metaspace(template.format(**ROW))["input_ids"]


@pytest.mark.parametrize("template", ["{soft:2}Article: {text}{label}", "{soft:2}{text}{soft:1}{label}"])
def test_slots_change_no_word(metaspace, template):
    words = [token for token in pieces(metaspace, template) if token >= 0]
    assert words == metaspace(template.replace("{soft:2}", "").replace("{soft:1}", "").format(**ROW))["input_ids"]


@pytest.mark.parametrize(
    "template",
    [
        "Article: {text}\nTopic: {label}",
        "{soft:2}{text} {label}",
        "<s>Article: {text}{label}",
        "{soft:2}<s>{text}{label}",
    ],
)
def test_start_tokens_stand_once_and_first(metaspace, template):
    tokens = pieces(metaspace, template)
    assert tokens[0] == metaspace.bos_token_id
    assert tokens.count(metaspace.bos_token_id) == 1


def test_a_tokenizer_without_start_token_gets_none(byte_level):
    assert PieceTokenizer(byte_level).start == ()
    assert pieces(byte_level, "{soft:2}{text}{label}")[:2] == [-1, -2]


def test_a_piece_inside_a_text_gets_no_blank_of_its_own(metaspace):
    tokenizer = PieceTokenizer(metaspace)
    for text in ("team", "\nTopic:", "!", "#", "\n"):
        assert metaspace.convert_ids_to_tokens(tokenizer.encode(text))[0] != "▁"
        assert tokenizer.decode(tokenizer.encode(text)) == text
    opening = metaspace.convert_ids_to_tokens(tokenizer.encode("team", opens=True))
    assert "".join(opening) == "▁team"


def named(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Every special token, also those that the tokenizer has no attribute for."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


@pytest.mark.parametrize("place", ["{0}", " {0}", "the {0} won", "{0}{0}"])
def test_special_names_in_row_text_are_text_byte_level(byte_level, place):
    check_plain(byte_level, place)


@pytest.mark.parametrize("place", ["{0}", " {0}", "the {0} won", "{0}{0}"])
def test_special_names_in_row_text_are_text_metaspace(metaspace, place):
    check_plain(metaspace, place)


def check_plain(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    encoder = PieceTokenizer(tokenizer)
    names = named(tokenizer)
    assert len(names) >= 3
    for name in names:
        text = place.format(name)
        ids = encoder.encode_data(text)
        assert tokenizer.convert_tokens_to_ids(name) not in ids
        assert encoder.decode(ids) == text


def test_special_names_in_the_template_are_special(byte_level):
    tokens = pieces(byte_level, "<|im_start|>user\n{text}<|im_end|>\n{label}")
    assert tokens[0] == byte_level.convert_tokens_to_ids("<|im_start|>")
    assert tokens.count(byte_level.convert_tokens_to_ids("<|im_end|>")) == 1


ENCODER = PieceTokenizer(tiny.tokenizer())


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_decoded_as_it_was_written(text):
    assert ENCODER.decode(ENCODER.encode_data(text)) == text
