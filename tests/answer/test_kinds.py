"""The engine answers every kind of task, any mixture of them at once, as each request alone."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

import pytest
import torch
from transformers import GenerationConfig

import reference
import tiny
import toys
from softprompt.answer.answers import Answer, Classification, Embedding, Generation, Labelling, Span, Tagging
from softprompt.answer.engine import Engine
from softprompt.data import Row
from softprompt.errors import LengthError, RequestError, SettingsError, UnknownPromptError
from softprompt.prompts import HardPrompt
from softprompt.run.maker import example_maker
from softprompt.text.task import Task

FAMILIES = ("llama", "gpt2", "bert", "roberta", "t5", "bart")
TYPES = {
    "generation": Generation,
    "classification": Classification,
    "multi-label": Labelling,
    "sequence-classification": Classification,
    "token-classification": Tagging,
    "question-answering": Span,
    "feature-extraction": Embedding,
}
VERBS = {
    "generation": "generate",
    "classification": "classify",
    "multi-label": "classify",
    "sequence-classification": "classify",
    "token-classification": "tag",
    "question-answering": "extract",
    "feature-extraction": "embed",
}


@cache
def engine(family: str, size: int = 32) -> Engine:
    """Two prompts of every kind, and text alone."""
    backbone = reference.backbone(family)
    made = Engine(backbone, batch_size=size)
    for kind in toys.kinds_of(family):
        made.add(kind, toys.prompt(backbone, toys.task_of(kind, backbone), seed=1))
        made.add(f"other {kind}", toys.prompt(backbone, toys.task_of(kind, backbone, soft="{soft:2}"), seed=2))
        plain = toys.prompt(backbone, toys.task_of(kind, backbone, soft=""), seed=3, method=HardPrompt())
        made.add(f"plain {kind}", plain)
    return made


def mixed(family: str) -> list[tuple[str, dict[str, str]]]:
    return [(name, {"text": row["text"]}) for row in toys.ROWS for name in engine(family).prompts]


def assert_same(one: Answer, other: Answer) -> None:
    assert type(one) is type(other)
    mine, theirs = asdict(one), asdict(other)
    for name, value in mine.items():
        wanted = theirs[name]
        if name in ("probabilities", "probability", "vector"):
            value, wanted = (list(v.values()) if isinstance(v, dict) else v for v in (value, wanted))
            wanted = pytest.approx(wanted, abs=1e-4)
        assert value == wanted, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_list_is_answered_as_each_request_alone(family):
    made, asked = engine(family), mixed(family)
    together = made.answer(asked, max_new_tokens=4)
    for (name, row), answer in zip(asked, together, strict=True):
        kind = made.prompts[name].task.kind
        assert type(answer) is TYPES[kind]
        assert_same(answer, made.answer([(name, row)], max_new_tokens=4)[0])
        options = {"max_new_tokens": 4} if kind == "generation" else {}
        assert_same(answer, getattr(made, VERBS[kind])([(name, row)], **options)[0])


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
@pytest.mark.parametrize("size", [1, 3])
def test_answers_come_in_order_whatever_is_run_at_once(family, size):
    asked = mixed(family)[::-1]
    for one, other in zip(
        engine(family, size).answer(asked, max_new_tokens=2),
        engine(family).answer(asked, max_new_tokens=2),
        strict=True,
    ):
        assert_same(one, other)


def test_no_request_has_no_answer():
    made = engine("bert")
    assert made.answer([]) == made.tag([]) == made.extract([]) == made.embed([]) == []


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_labels_and_odds_are_shown_as_probabilities(family):
    made = engine(family)
    for answer in made.classify([("sequence-classification", row) for row in toys.ROWS]):
        assert list(answer.probabilities) == toys.LABELS
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert answer.label == max(answer.probabilities, key=answer.probabilities.get)
    for answer in made.classify([("multi-label", row) for row in toys.ROWS]):
        assert answer.labels == tuple(label for label in toys.LABELS if answer.probabilities[label] > 0.5)


# Inside a field


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_every_word_has_its_label(family):
    text = "  the market\nunfolds again "
    as_text, as_list = engine(family).tag([("token-classification", {"text": t}) for t in (text, text.split())])
    assert_same(as_text, as_list)
    assert len(as_text.labels) == len(as_text.probabilities) == 4
    assert set(as_text.labels) <= set(toys.LABELS)
    assert all(0.5 <= p <= 1 for p in as_text.probabilities)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_words_that_were_cut_away_have_no_label(family):
    backbone = reference.backbone(family)
    task = Task("{soft:2}{text}", toys.LABELS, kind="token-classification", max_length=12)
    made = Engine(backbone)
    made.add("p", toys.prompt(backbone, task))
    words = ["won", "the", "team", "yes"] * 5
    whole, cut = made.tag([("p", {"text": words[:3]}), ("p", {"text": words})])
    assert None not in whole.labels
    assert len(cut.labels) == len(cut.probabilities) == 20
    answered = sum(label is not None for label in cut.labels)
    assert 7 < answered < 13
    assert cut.labels[answered:] == cut.probabilities[answered:] == (None,) * (20 - answered)
    assert (whole.cut, cut.cut) == (0, 20 - answered)


def test_words_of_which_the_tokenizer_makes_nothing_have_no_label(minilm):
    made = Engine(minilm)
    made.add("p", toys.prompt(minilm, Task("{soft:2}{text}", toys.LABELS, kind="token-classification")))
    (answer,) = made.tag([("p", {"text": ["the", "\u200b", "team", "won"]})])
    (without,) = made.tag([("p", {"text": ["the", "team", "won"]})])
    assert [label is None for label in answer.labels] == [False, True, False, False]
    assert [p for p in answer.probabilities if p is not None] == pytest.approx(list(without.probabilities), abs=1e-5)
    assert answer.cut == 0


CONTENTS = ["the team won the match", "  two  blanks\nand lines \n", "naïve café, 서울의 팀이 이겼다!", "x", 1999]


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "minilm"])
def test_a_span_is_the_part_of_the_field_where_it_says(family, minilm):
    backbone = minilm if family == "minilm" else reference.backbone(family)
    made = Engine(backbone)
    for seed in range(4):
        task = Task("{soft:2}Q: {question} A: {text}", kind="question-answering")
        made.add(str(seed), toys.prompt(backbone, task, seed=seed))
    for content in CONTENTS:
        for answer in made.extract([(name, {"text": content, "question": "who won?"}) for name in made.prompts]):
            assert str(content)[answer.start : answer.end] == answer.text
            assert answer.text == answer.text.strip()
            assert 0 < answer.probability <= 1
    (blank,) = made.extract([("0", {"text": "x \n", "question": "?"})])
    assert 0 <= blank.start <= blank.end <= 3


def test_a_learned_answer_is_found_in_texts_it_was_not_learned_from():
    backbone = reference.backbone("bert")
    words = ["won", "fell", "team", "market", "match", "yes"]
    rows = [{"text": f"the {a} : {b}", "label": b} for a in words for b in words if a != b]
    held_out, rows = rows[::5], [row for i, row in enumerate(rows) if i % 5]
    task = Task("{soft:4}{text}", kind="question-answering")
    result = toys.learn(backbone, task, rows, held_out, steps=40, learning_rate=0.05)
    assert result.metrics["accuracy"] > 0.7
    made = Engine(backbone)
    made.add("p", result.prompt)
    found = made.extract([("p", row) for row in held_out])
    right = sum(span.text == row["label"] for span, row in zip(found, held_out, strict=True)) / len(held_out)
    assert right == pytest.approx(result.metrics["accuracy"])


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
@torch.no_grad()
def test_a_vector_is_as_long_as_a_state(family):
    made = engine(family)
    for answer in made.embed([("feature-extraction", row) for row in toys.ROWS]):
        assert len(answer.vector) == 32
        assert all(isinstance(number, float) for number in answer.vector)


# Requests that cannot be met


@pytest.mark.parametrize("kind", toys.KINDS)
@pytest.mark.parametrize("verb", ["classify", "tag", "extract", "embed", "generate"])
def test_a_verb_of_another_kind_is_refused_and_the_right_one_is_named(kind, verb):
    made = engine("llama")
    row = {"text": "the team"}
    if verb == VERBS[kind] or (verb == "generate" and kind in toys.SPOKEN):
        assert len(getattr(made, verb)([(kind, row)])) == 1
        return
    good = next(k for k, v in VERBS.items() if v == verb)
    with pytest.raises(RequestError, match=rf"request 2 \({kind}\): .*Use {VERBS[kind]}\.$"):
        getattr(made, verb)([(good, row), (kind, row)])


@pytest.mark.parametrize("kind", toys.KINDS[1:])
def test_an_encoder_writes_nothing(kind):
    with pytest.raises(RequestError, match=rf"request 1 \({kind}\): its task is {kind}, and it writes nothing"):
        engine("bert").generate([(kind, {"text": "x"})])


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (
            ("question-answering", {"words": "x"}),
            RequestError,
            r"request 3 \(question-answering\): field 'text' is",
        ),
        (
            ("token-classification", {"text": " "}),
            RequestError,
            r"request 3 \(token-classification\): nothing of",
        ),
        (("token-classification", {"text": ["a", 3.5, None]}), RequestError, r"request 3 .*'text' is null"),
        (("sequence-classification", {"text": ["a"]}), RequestError, r"request 3 .*: field 'text' is list"),
        (("nobody", {"text": "x"}), UnknownPromptError, r"request 3 \(nobody\): there is no prompt called 'nobody'"),
        (("multi-label", Row({}, "rows.csv, line 9")), RequestError, r"^rows.csv, line 9: field 'text' is missing"),
        ("multi-label", RequestError, "request 3: it is str 'multi-label', not a prompt's name and a row"),
    ],
)
def test_a_bad_request_among_others_keeps_its_number_and_nothing_is_run(bad, error, message):
    made, row = engine("llama"), {"text": "the team"}
    good = [("generation", row), ("classification", row)]
    with reference.inputs_of(reference.first_site(made.backbone)) as run, pytest.raises(error, match=message):
        made.answer([*good, bad, ("embed", row)])
    assert run == []


def test_room_is_kept_for_what_is_written_and_for_nothing_else():
    made = engine("gpt2")
    long = {"text": "the market fell, " * 300}
    written, chosen = made.answer([("generation", long), ("classification", long)], max_new_tokens=100)
    assert written.cut == chosen.cut + 99
    assert written.tokens <= 100
    with pytest.raises(LengthError, match=r"request 2 \(generation\)"):
        made.answer([("classification", long), ("generation", long)], max_new_tokens=128)
    with pytest.raises(SettingsError, match="max_new_tokens is 0"):
        made.answer([("classification", long)], max_new_tokens=0)


def test_a_decoder_of_its_own_writes_as_much_as_it_has_positions_for():
    made, row = engine("bart"), {"text": "the team"}
    assert made.generate([("generation", row)], max_new_tokens=127)[0].tokens <= 127
    with pytest.raises(LengthError, match=r"request 1 .*the answer takes 128 tokens.*smaller max_new_tokens"):
        made.generate([("generation", row)], max_new_tokens=128)


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
@torch.no_grad()
def test_an_encoder_decoder_writes_what_the_plain_model_writes(family, options):
    made, model, own = engine(family), tiny.model(family), reference.backbone(family)
    # Bart's own defaults force an end, and defaults are not taken over.
    model.generation_config = GenerationConfig()
    asked = [(name, row) for row in toys.ROWS for name in ("generation", "other generation")]
    for (name, row), answer in zip(asked, made.generate(asked, max_new_tokens=6, **options), strict=True):
        saved, start = made.prompts[name], list(own.decoder_start)
        maker = example_maker(own, saved.task)
        sequence = reference.embeds(model, maker(row, answered=False).tokens, saved.values.embeddings)
        ids = model.generate(
            encoder_outputs=model.get_encoder()(inputs_embeds=sequence),
            attention_mask=torch.ones(sequence.shape[:2]).long(),
            decoder_input_ids=torch.tensor([start]),
            generation_config=GenerationConfig(
                max_new_tokens=6, eos_token_id=1, pad_token_id=2, decoder_start_token_id=start[0], **options
            ),
        )[0].tolist()
        kept = reference.until_end(ids[len(start) :], model)
        assert answer.text == maker.decode(kept)
        assert answer.finished == (len(kept) < 6)
