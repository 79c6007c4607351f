"""Models whose shapes or forwards are not the usual ones, and heads beside the one for words."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

import reference
import tiny
from our_side import READING, WRITING, assert_a_batch_equals_each_row_alone, random_values, virtual_tokens
from peft_side import IDS, ONES, adapted, narrow_opt, with_head
from softprompt.answer.engine import Engine
from softprompt.backbone.backbone import Backbone
from softprompt.errors import SourceError
from softprompt.prompts import PrefixTuning, PromptTuning
from softprompt.text.task import Task
from toys import LABELS, ROWS, learn

NARROW = {"electra": READING, "albert": READING, "opt": WRITING}
"""Input embeddings of another width than the states."""


def narrow(family: str) -> PreTrainedModel:
    return narrow_opt() if family == "opt" else tiny.model(family)


def deberta() -> PreTrainedModel:
    config = AutoConfig.for_model("deberta-v2", **tiny.SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"])
    return tiny.random_model(config, AutoModelForMaskedLM)


@pytest.mark.parametrize("family", NARROW)
def test_a_prompt_is_as_wide_as_the_input_embeddings(family):
    backbone = Backbone(narrow(family), tiny.tokenizer_of(family))
    # The states of OPT are made as narrow as its embeddings again.
    assert (backbone.hidden_size, backbone.state_size) == (16, 16 if family == "opt" else 32)
    assert_a_batch_equals_each_row_alone(backbone, narrow(family), NARROW[family], virtual_tokens(backbone))
    trained = learn(backbone, NARROW[family], method=PromptTuning(tokens=3), steps=1).prompt
    assert trained.values.embeddings.shape == (3, 16)


@pytest.mark.peer
@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
@pytest.mark.parametrize("family", NARROW)
def test_peft_makes_a_prompt_as_wide_as_the_states(family, method):
    if family == "opt":
        model = adapted(narrow_opt(), method)
    else:
        model = adapted(with_head(family, AutoModelForSequenceClassification), method, "SEQ_CLS")
    with pytest.raises(RuntimeError, match="Expected size 32 but got size 16"):
        model(IDS, attention_mask=ONES)


# T5 with heads of a width of their own, keys wider than values, and encoders.
PREFIXED = {"t5": WRITING, "deepseek_v3": WRITING, "distilbert": READING, "modernbert": READING}


@pytest.mark.parametrize("family", PREFIXED)
def test_a_prefix_has_the_shape_of_each_site(family):
    backbone = reference.backbone(family)
    assert_a_batch_equals_each_row_alone(
        backbone, tiny.model(family), PREFIXED[family], random_values("prefix", backbone)
    )
    values = learn(backbone, PREFIXED[family], method=PrefixTuning(tokens=3), steps=1).prompt.values
    shapes = [(k.shape[1], k.shape[2], v.shape[2]) for k, v in zip(values.keys, values.values, strict=True)]
    assert shapes == list(backbone.site_shapes.values())


@pytest.mark.peer
@pytest.mark.parametrize(("family", "task_type"), [("t5", "SEQ_2_SEQ_LM"), ("deepseek_v3", "CAUSAL_LM")])
def test_peft_takes_one_head_width_for_all(family, task_type):
    model = adapted(family, "prefix", task_type)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        model(IDS, attention_mask=ONES, labels=IDS)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("distilbert", "Please specify `token_dim`"),
        ("modernbert", "Model does not support past key values"),
        # With transformers 5.24 all the others, too: what they take is called `cache` now.
        ("bert", "Model does not support past key values"),
        ("roberta", "Model does not support past key values"),
    ],
)
@pytest.mark.parametrize(
    ("auto", "task_type"),
    [
        (AutoModelForSequenceClassification, "SEQ_CLS"),
        (AutoModelForTokenClassification, "TOKEN_CLS"),
        (AutoModelForQuestionAnswering, "QUESTION_ANS"),
    ],
)
def test_peft_gives_an_encoder_with_a_head_no_prefix(family, message, auto, task_type):
    with pytest.raises(ValueError, match=message):
        adapted(with_head(family, auto), "prefix", task_type)(IDS, attention_mask=ONES)


@pytest.mark.peer
def test_peft_gives_modernbert_without_a_head_no_prefix_either():
    model = adapted(with_head("modernbert", AutoModel), "prefix", "FEATURE_EXTRACTION")
    with pytest.raises(RuntimeError, match="must match the size"):
        model(IDS, attention_mask=ONES)


OFF_THE_REGISTRY = {"falcon": WRITING, "deberta": READING}
"""Their attention cannot be reached: Falcon's (with one key head for all) and DeBERTa-v2's."""


def off_the_registry(family: str) -> PreTrainedModel:
    return deberta() if family == "deberta" else tiny.model(family)


@pytest.mark.parametrize("family", OFF_THE_REGISTRY)
def test_a_prefix_is_refused_before_training_where_it_cannot_be(family):
    tokenizer = tiny.tokenizer("encoder" if family == "deberta" else "decoder")
    backbone = Backbone(off_the_registry(family), tokenizer)
    with pytest.raises(SourceError, match=r"attention cannot be reached.*Use prompt-tuning or p-tuning"):
        learn(backbone, OFF_THE_REGISTRY[family], method=PrefixTuning(tokens=3))


@pytest.mark.parametrize("family", OFF_THE_REGISTRY)
def test_what_is_offered_instead_of_a_prefix_works(family):
    tokenizer = tiny.tokenizer("encoder" if family == "deberta" else "decoder")
    backbone = Backbone(off_the_registry(family), tokenizer)
    assert_a_batch_equals_each_row_alone(
        backbone, off_the_registry(family), OFF_THE_REGISTRY[family], virtual_tokens(backbone)
    )
    learn(backbone, OFF_THE_REGISTRY[family], method=PromptTuning(tokens=3), steps=1)


@pytest.mark.peer
def test_peft_fails_at_the_first_forward_of_a_prefix_for_multi_query_falcon():
    with pytest.raises(RuntimeError, match="Expected size 4 but got size 1"):
        adapted("falcon", "prefix")(IDS, attention_mask=ONES)


@pytest.mark.peer
def test_peft_fails_at_the_first_forward_of_a_prefix_for_deberta():
    config = deberta().config
    config.num_labels = 2
    model = adapted(tiny.random_model(config, AutoModelForSequenceClassification), "prefix", "SEQ_CLS")
    with pytest.raises(ValueError, match="Model does not support past key values"):
        model(IDS, attention_mask=ONES)


TAGGED = [row | {"label": [LABELS[len(word) % 2] for word in row["text"].split()]} for row in ROWS]


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("method", [PromptTuning(tokens=3), PrefixTuning(tokens=3)], ids=["prompt", "prefix"])
def test_words_are_classified_and_trained_on(family, method):
    backbone = reference.backbone(family)
    task = Task("{soft}Article: {text}", LABELS, kind="token-classification")
    engine = Engine(backbone)
    engine.add("p", learn(backbone, task, TAGGED, method=method, steps=40, learning_rate=0.05).prompt)
    found = engine.tag([("p", row) for row in TAGGED])
    assert [len(answer.labels) for answer in found] == [len(row["label"]) for row in TAGGED]
    pairs = [
        pair
        for answer, row in zip(found, TAGGED, strict=True)
        for pair in zip(answer.labels, row["label"], strict=True)
    ]
    assert sum(a == b for a, b in pairs) > 0.9 * len(pairs)


@pytest.mark.peer
@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
def test_peft_compares_the_words_labels_with_the_prompts_positions(family, method):
    model = adapted(with_head(family, AutoModelForTokenClassification), method, "TOKEN_CLS")
    with pytest.raises(ValueError, match=r"input batch_size \(8\) to match target batch_size \(5\)"):
        model(IDS, attention_mask=ONES, labels=torch.zeros_like(IDS))
