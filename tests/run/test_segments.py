"""What stands behind `{sep}` is marked as the second segment, where the encoder was taught to tell the two apart."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

import reference
import tiny
from reference import assert_close
from softprompt.backbone.backbone import Backbone
from softprompt.prompts.prompt import VirtualTokens
from softprompt.run.forward import Filling, Forward
from softprompt.run.maker import example_maker
from softprompt.text.task import Task

MARKING = ("bert", "electra", "albert")
PAIRS = (("the team won", "the match"), ("x", "the market fell, and fell"), ("the market fell, and fell, and", "x"))
ROWS = [{"text": text, "subject": subject} for text, subject in PAIRS]


@cache
def paired() -> PreTrainedTokenizerFast:
    """Puts a pair together as BERT's does, and says which token is whose."""
    made = tiny.tokenizer("encoder").backend_tokenizer
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=names, **tokens)


@cache
def marking(family: str) -> Backbone:
    return Backbone(tiny.model(family), paired(), family)


def examples_of(backbone: Backbone, template: str, kind: str = "feature-extraction", *, inside: bool = False):
    """All tokens of each row are read."""
    made = example_maker(backbone, Task(template, kind=kind), inside=inside)
    return [made(row, answered=False) for row in ROWS]


def random_tokens(backbone: Backbone, count: int) -> torch.Tensor:
    scale = float(backbone.embeddings.std())
    return torch.randn(count, backbone.hidden_size, generator=torch.Generator().manual_seed(3)) * scale


@pytest.mark.parametrize("family", MARKING)
@torch.no_grad()
def test_a_pair_is_read_as_the_tokenizer_encodes_it(family):
    backbone, model = marking(family), reference.plain(family)
    examples = examples_of(backbone, "{text}{sep}{subject}")
    answers = Forward(backbone).answers(examples, [Filling(VirtualTokens(torch.zeros(0, backbone.hidden_size)))])
    for i, (pair, example) in enumerate(zip(PAIRS, examples, strict=True)):
        encoded = paired()(*pair, return_tensors="pt")
        assert encoded["input_ids"][0].tolist() == list(example.tokens)
        assert set(encoded["token_type_ids"][0].tolist()) == {0, 1}
        wanted = model.base_model(**encoded).last_hidden_state[0]
        assert_close(answers.states[i, -len(wanted) :], wanted)
        del encoded["token_type_ids"]
        assert not torch.allclose(wanted, model.base_model(**encoded).last_hidden_state[0], atol=1e-3)


@torch.no_grad()
def test_a_pair_before_a_real_encoder_is_read_as_its_tokenizer_encodes_it(minilm):
    examples = examples_of(minilm, "{text}{sep}{subject}")
    answers = Forward(minilm).answers(examples, [Filling(VirtualTokens(torch.zeros(0, minilm.hidden_size)))])
    for i, pair in enumerate(PAIRS):
        encoded = minilm.tokenizer(*pair, return_tensors="pt")
        wanted = minilm.model(**encoded).last_hidden_state[0]
        assert_close(answers.states[i, -len(wanted) :], wanted, 1e-4)


@pytest.mark.parametrize(
    ("template", "segments"),
    [
        ("{soft:2}{text}{sep}{soft:1}{subject}", [0, 0, 0, 0, 0, 1, 1, 1]),
        ("{text}{sep}{subject}{sep}{soft:2}", [0, 0, 0, 1, 1, 1, 1, 1]),
        ("{text}{sep}{subject}{sep}", [0, 0, 0, 1, 1]),
        ("{text}{soft:2}{subject}", [0, 0, 0, 0, 0, 0]),
        ("{text}{subject}{soft:1}{sep}", [0, 0, 0, 0, 0]),
    ],
)
@torch.no_grad()
def test_virtual_tokens_are_of_the_segment_they_stand_in(template, segments):
    backbone, model = marking("bert"), reference.plain("bert")
    made = example_maker(backbone, Task(template, kind="feature-extraction"))
    example = made({"text": "x", "subject": "y"}, answered=False)
    other = made({"text": "the team won the match", "subject": "the market fell, and fell"}, answered=False)
    prompt = random_tokens(backbone, 3)
    types = torch.tensor([segments])
    wanted = model.base_model(
        inputs_embeds=reference.embeds(model, example.tokens, prompt), token_type_ids=types
    ).last_hidden_state[0, list(example.reads)]
    # The other is longer, so that this one is padded.
    found = Forward(backbone).answers([example, other], [Filling(VirtualTokens(prompt))]).states[0]
    assert_close(found[-len(wanted) :], wanted)


@torch.no_grad()
def test_a_prefix_is_of_no_segment():
    backbone, model = marking("bert"), tiny.model("bert")
    prefix = reference.random_prefix(backbone, 2)
    examples = examples_of(backbone, "{soft:2}{cls}{text}{sep}{subject}", inside=True)
    answers = Forward(backbone).answers(examples, [Filling(prefix)])
    for i, pair in enumerate(PAIRS):
        with reference.prefixed(model, prefix):
            wanted = model.base_model(**paired()(*pair, return_tensors="pt")).last_hidden_state[0]
        assert_close(answers.states[i, -len(wanted) :], wanted)


def test_models_that_have_one_segment_are_told_of_none():
    roberta = tiny.random_model(
        tiny.AutoConfig.for_model("roberta", **tiny.SHAPE, type_vocab_size=1), AutoModelForMaskedLM
    )
    one_segment = [Backbone(roberta, paired()), *(marking(family) for family in ("distilbert", "modernbert"))]
    # Nor is one whose tokenizer encodes pairs without saying which token is whose.
    for backbone in [*one_segment, reference.backbone("bert"), reference.backbone("t5"), reference.backbone("llama")]:
        assert not backbone.marks_segments
    for backbone in one_segment:
        nothing = VirtualTokens(torch.zeros(0, backbone.hidden_size))
        ready = Forward(backbone).prepare(examples_of(backbone, "{text}{sep}{subject}"), [Filling(nothing)])
        assert ready.segments is None
