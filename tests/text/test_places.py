"""Where a model answers, and what the tokenizer puts around a text."""

from __future__ import annotations

import pytest
from transformers import ByT5Tokenizer

import tiny
from softprompt.errors import LabelError, LengthError, SourceError, TemplateError
from softprompt.prompts import PrefixTuning, PromptTuning
from softprompt.prompts.method import resolve_task
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task
from softprompt.text.template import Template
from softprompt.text.verbalizer import Verbalizer

TOKENIZERS = {
    "decoder": tiny.tokenizer(),
    "encoder": tiny.tokenizer("encoder"),
    "encoder-decoder": tiny.tokenizer("t5"),
    "bart": tiny.tokenizer("bart"),
}
LABELS = ["sports", "business"]
WORDS = {"sports": "won", "business": "the"}
"""Of one token each, with a blank before them or without."""
ROW = {"text": "the team won", "subject": "the market", "label": "sports"}


def shown(task: Task, kind: str = "encoder", tokenizer=None) -> str:
    """What stands in an example: `[v]` for a virtual token, `>` before what is read."""
    own = tokenizer if tokenizer is not None else TOKENIZERS[kind]
    example = ExampleMaker(task, own, 128, kind)(ROW)
    parts = [f"[{-1 - token}]" if token < 0 else own.decode([token]) for token in example.tokens]
    for place in example.reads or ():
        parts[place] = ">" + parts[place]
    return "".join(parts)


def headed(template: str) -> Task:
    return Task(template, LABELS, kind="sequence-classification")


@pytest.mark.parametrize(
    "source",
    [
        "{cls}{soft:3}{mask}{soft:3}{subject}{soft:3}{sep}",
        "Topic: {mask}{soft:2}{{x}} {text}",
        "{soft:2}{bos}{text}{sep}\n {mask} is it",
    ],
)
def test_a_template_is_written_as_it_was_read(source):
    template = Template.parse(source)
    assert Template._of(template.segments).source == source
    changed = template.with_slot_in_front().with_lengths(5)
    assert Template.parse(changed.source) == changed


@pytest.mark.parametrize(
    ("template", "content"),
    [
        ("{text}: {mask}", "<s>the team won:><mask></s>"),
        ("{text}: {mask} it is", "<s>the team won:><mask> it is</s>"),
        ("{mask}{soft:2} {text}", "<s>><mask>[0][1] the team won</s>"),
        ("{soft:2}{text} {mask}", "<s>[0][1]the team won><mask></s>"),
        ("{soft:2}{cls}{text} {mask}", "[0][1]<s>the team won><mask></s>"),
        ("{soft:2}{bos}{text} {mask}", "[0][1]<s>the team won><mask></s>"),
        ("{cls}{soft:1}{mask}{soft:1} {subject}{soft:1}{sep}", "<s>[0]><mask>[1] the market[2]</s>"),
        ("{text}{sep}{subject} {mask}", "<s>the team won</s>the market><mask></s>"),
        ("{text}{sep} {mask}{sep}", "<s>the team won</s>><mask></s>"),
    ],
)
def test_a_mask_stands_where_the_template_says(template, content):
    assert shown(Task(template, WORDS)) == content


@pytest.mark.parametrize(
    ("kind", "template", "content"),
    [
        ("decoder", "{soft:1}{text}", "[0]the team> won"),
        ("decoder", "{text}{soft:2}", "the team won[0]>[1]"),
        ("encoder", "{soft:1}{text}", "><s>[0]the team won</s>"),
        ("encoder", "{soft:1}{text}{cls}", "[0]the team won><s></s>"),
        ("encoder", "{text}{sep}{subject}", "><s>the team won</s>the market</s>"),
        ("encoder-decoder", "{soft:1}{text}", "[0]the team won</s>"),
        ("encoder-decoder", "{text}{sep}{subject}{sep}", "the team won</s>the market</s>"),
    ],
)
def test_what_a_head_reads_for_a_whole_row(kind, template, content):
    assert shown(headed(template), kind) == content


def test_an_encoder_decoder_that_begins_a_text_begins_every_text():
    made = ExampleMaker(Task("{soft:1}{text}{label}"), TOKENIZERS["bart"], 128, "encoder-decoder")
    assert [TOKENIZERS["bart"].decode([t]) if t >= 0 else "[0]" for t in made(ROW).tokens] == [
        *("<s>", "[0]", "the", " team", " won", "</s>")
    ]


def test_an_encoder_without_a_beginning_is_read_at_its_first_real_token():
    behind_alone = TOKENIZERS["encoder-decoder"]
    assert shown(headed("{soft:2}{text}"), tokenizer=behind_alone) == "[0][1]>the team won</s>"


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("decoder", "[0]the team> won"),
        ("encoder", "><s>[0]>the> team> won></s>"),
        ("encoder-decoder", "[0]>the> team> won></s>"),
    ],
)
def test_a_vector_is_made_of_every_real_token_or_of_a_decoders_last(kind, content):
    assert shown(Task("{soft:1}{text}", kind="feature-extraction"), kind) == content


def test_a_prompt_alone_is_a_vector_of_its_last_token():
    task = Task("{soft:3}", kind="feature-extraction")
    assert ExampleMaker(task, tiny.tokenizer(), 128, "encoder")({"label": "x"}).reads == (2,)


@pytest.mark.parametrize("blank", ["", " "])
def test_a_label_word_stands_in_the_mask_as_it_would_in_the_text(blank):
    own = TOKENIZERS["encoder"]
    example = ExampleMaker(Task("Topic:" + blank + "{mask}", WORDS), own, 128, "encoder")(ROW)
    assert example.target == tuple(own(blank + "won", add_special_tokens=False)["input_ids"])
    assert (example.label, example.labels) == (0, (0,))


def test_words_of_an_encoder_decoder_begin_a_text_of_their_own():
    own = TOKENIZERS["encoder-decoder"]
    made = ExampleMaker(Task("{text}: {label}", LABELS), own, None, "encoder-decoder")
    assert made.verbalizer.words == tuple(tuple(own(w, add_special_tokens=False)["input_ids"]) for w in LABELS)
    writing = ExampleMaker(Task("{text}: {label}"), own, None, "encoder-decoder")
    target = writing({**ROW, "label": "the team"}).target
    assert target == tuple(own("the team")["input_ids"])
    assert writing.decode(target) == "the team"


def test_metaspace_words_of_an_encoder_decoder_begin_with_their_blank(metaspace):
    made = ExampleMaker(Task("{text} {label}"), metaspace, None, "encoder-decoder")
    target = made({"text": "the market fell", "label": "the team won"}).target
    assert list(target[:-1]) == metaspace("the team won", add_special_tokens=False)["input_ids"]
    assert made.decode(target) == "the team won"


def test_a_decoder_with_several_labels_answers_behind_the_row():
    one = ExampleMaker(Task("{text}:{label}", LABELS), TOKENIZERS["decoder"])
    several = ExampleMaker(Task("{text}:{label}", LABELS, kind="multi-label", none="no"), TOKENIZERS["decoder"])
    assert several(ROW).reads is None
    assert several(ROW).tokens == one(ROW).tokens
    assert (several(ROW).target, several(ROW).labels) == ((), (0,))


NO_MASK = tiny.tokenizer("bart")


@pytest.mark.parametrize(
    ("kind", "tokenizer", "task", "message"),
    [
        (
            "decoder",
            None,
            Task("{text}{mask}", LABELS),
            r"{mask} is filled by encoders.*decoder.*Put {label} at the",
        ),
        ("encoder-decoder", None, Task("{text}{mask}", LABELS), r"{mask} is filled by encoders.*encoder-decoder"),
        (
            "encoder",
            None,
            Task("{text}{label}", LABELS),
            r"cannot answer at {label}.*Put {mask} where.*task with",
        ),
        ("encoder", None, Task("{text}{label}"), r"cannot answer at {label}"),
        ("encoder", None, Task("{text}{mask}"), r"{mask} is filled by one of the labels.*Give labels"),
        ("encoder", NO_MASK, Task("{text}{mask}", LABELS), r"the tokenizer has no mask token.*Use a task with a head"),
        ("decoder", None, Task("{text}{sep}{label}", LABELS), r"{sep} stands in it.*puts nothing behind a text"),
        (
            "decoder",
            None,
            Task("{text}{soft:1}", LABELS, kind="token-classification"),
            r"a slot stands behind {text}, and a decoder answers inside it.*Put {soft} before {text}",
        ),
        ("decoder", None, Task("{soft:1}{text}{soft:1}", kind="question-answering"), "a slot stands behind {text}"),
    ],
)
def test_a_place_where_a_model_does_not_answer_is_refused(kind, tokenizer, task, message):
    with pytest.raises(TemplateError, match=message) as refused:
        ExampleMaker(task, tokenizer if tokenizer is not None else TOKENIZERS[kind], 128, kind)
    assert refused.value.where == f"template {task.template.source!r}"


def test_a_slot_behind_the_field_is_seen_by_an_encoder():
    for kind in ("token-classification", "question-answering"):
        task = Task("{text}{soft:1}", LABELS if kind == "token-classification" else None, kind=kind)
        assert ExampleMaker(task, TOKENIZERS["encoder"], 128, "encoder").virtual == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            Task("{text}: {mask}", {"a": "won", "b": "the market"}),
            r"^label 'b': label word 'the market' is 2 tok",
        ),
        (
            Task("{text}: {mask}", WORDS, kind="multi-label", none="neither"),
            r"^label 'none': label word 'neither' is",
        ),
        (
            Task("{text}:{mask}", LABELS),
            r"^label 'sports': label word 'sports' is 2 tokens, and {mask} is filled by",
        ),
    ],
)
def test_a_mask_is_filled_by_one_token(task, message):
    with pytest.raises(LabelError, match=message):
        ExampleMaker(task, TOKENIZERS["encoder"], 128, "encoder")


def test_words_of_several_labels_begin_differently():
    task = Task("{text}{label}", {"a": "the match", "b": "the market"}, kind="multi-label", none="won")
    with pytest.raises(LabelError, match=r"'a' and 'b': label words 'the match' and 'the market' begin"):
        ExampleMaker(task, TOKENIZERS["decoder"])
    task = Task("{text}{label}", {"a": "match", "b": "won"}, kind="multi-label", none="won fell")
    with pytest.raises(LabelError, match=r"'won' and 'won fell' cannot be told apart.*"):
        ExampleMaker(task, TOKENIZERS["decoder"])


def test_the_word_for_none_is_no_label():
    made = ExampleMaker(Task("{text}{label}", LABELS, kind="multi-label", none="won"), TOKENIZERS["decoder"])
    assert isinstance(made.verbalizer, Verbalizer)
    assert made.verbalizer.labels == tuple(LABELS)
    assert made.verbalizer.none == tuple(TOKENIZERS["decoder"]("won", add_special_tokens=False)["input_ids"])
    assert ExampleMaker(Task("{text}{label}", LABELS), TOKENIZERS["decoder"]).verbalizer.none == ()


def test_a_tokenizer_that_does_not_know_where_its_tokens_stand_answers_no_question():
    with pytest.raises(SourceError, match=r"ByT5Tokenizer.*cannot tell where in a text a token stands.*fast tokenizer"):
        ExampleMaker(Task("{text}", kind="question-answering"), ByT5Tokenizer(), None, "encoder-decoder")


def test_a_prefix_leaves_what_opens_the_text_in_front_of_it():
    task = resolve_task(Task("{text}: {mask}", WORDS), PrefixTuning(tokens=2))
    assert task.template.source == "{soft:2}{bos}{text}: {mask}"
    with pytest.raises(TemplateError, match="nothing behind the slot to attend to it"):
        resolve_task(Task("{soft}", LABELS, kind="sequence-classification"), PrefixTuning(tokens=2))
    with pytest.raises(TemplateError, match="stands before everything else, in one slot"):
        resolve_task(Task("{cls}{soft}{text}", LABELS, kind="sequence-classification"), PrefixTuning(tokens=2))
    assert resolve_task(Task("{text}", kind="feature-extraction"), PromptTuning(tokens=2)).template.source == (
        "{soft:2}{text}"
    )


def test_a_decoder_of_its_own_has_room_for_so_much_of_an_answer():
    made = ExampleMaker(Task("{text}{label}"), TOKENIZERS["bart"], 20, "encoder-decoder", 2)
    assert len(made({"text": "x", "label": "x" * 18}).target) == 19
    with pytest.raises(LengthError, match=r"row 1: the answer takes 20 tokens, but .* decoder has positions for 19"):
        made.all([{"text": "x", "label": "x" * 19}])
    assert made({"text": "x" * 50}, answered=False, room_for=19).cut == 32
    with pytest.raises(LengthError, match="the answer takes 20 tokens"):
        made({"text": "x"}, answered=False, room_for=20)
    assert ExampleMaker(Task("{text}{label}"), TOKENIZERS["bart"], None, "encoder-decoder", 2).limit is None
