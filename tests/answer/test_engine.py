from __future__ import annotations

import gc
from functools import cache
from typing import Any

import pytest
import torch

import reference
import tiny
from softprompt import artifact
from softprompt.answer.engine import Classification, Engine
from softprompt.backbone.backbone import Backbone
from softprompt.data import Row
from softprompt.errors import LengthError, MismatchError, RequestError, SettingsError, UnknownPromptError
from softprompt.learn.evaluation import evaluate
from softprompt.prompts import HardPrompt, PromptTuning
from softprompt.saved import SavedPrompt
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task
from toys import BEHIND, FRONT, LABELS, ROWS, TOPICS, WRITING, decided_backbone, learn, plain_probabilities, prompt

# Of different places, lengths, labels and fields; one is text alone, one has label words that begin alike.
CLASSIFYING = {
    "front": TOPICS,
    "behind": Task(BEHIND, ["won", "fell", "yes"]),
    "long": Task("{soft:2}Is {text}{soft:9} right? {label}", {"+": "yes", "-": "no"}),
    "alike": Task(FRONT, {"sports": "the match", "business": "the market", "none": "won"}),
    "hard": Task("Article: {text}\nTopic: {label}", LABELS),
}
GENERATING = {
    "front": WRITING,
    "behind": Task(BEHIND),
    "long": Task("{soft:2}Is {text}{soft:9} right? {label}"),
    "hard": Task("Article: {text}\nTopic: {label}"),
}
TEXTS = [row["text"] for row in ROWS]


def saved(name: str, task: Task, backbone: Backbone) -> SavedPrompt:
    method = HardPrompt() if name == "hard" else PromptTuning()
    return prompt(backbone, task, seed=len(name), method=method)


@cache
def engine(family: str, kind: str) -> Engine:
    """One for all tests that only ask it."""
    backbone = reference.backbone(family)
    made = Engine(backbone)
    for name, task in (CLASSIFYING if kind == "classify" else GENERATING).items():
        made.add(name, saved(name, task, backbone))
    return made


def requests(made: Engine, texts: list[str] = TEXTS) -> list[tuple[str, dict[str, str]]]:
    """Every text to every prompt, neighbours never the same prompt."""
    return [(name, {"text": text}) for text in texts for name in made.prompts]


def assert_plain(answer: Classification, family: str, asked: SavedPrompt, row: dict[str, str]) -> None:
    (wanted,) = plain_probabilities(family, asked, [row]).tolist()
    assert list(answer.probabilities) == list(asked.task.labels)
    assert list(answer.probabilities.values()) == pytest.approx(wanted, abs=1e-5)


def assert_same(got: list[Classification], wanted: list[Classification], tolerance: float = 1e-5) -> None:
    assert [a.label for a in got] == [a.label for a in wanted]
    for one, other in zip(got, wanted, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=tolerance)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("template", [FRONT, BEHIND])
def test_what_was_trained_is_what_is_served(tmp_path, family, template):
    backbone = reference.backbone(family)
    result = learn(backbone, Task(template, LABELS), ROWS, ROWS, steps=3, output=tmp_path / "p")
    served = Engine(backbone)
    served.add("live", result.prompt)
    served.add("saved", tmp_path / "p")
    live, loaded = (served.classify([(name, row) for row in ROWS]) for name in ("live", "saved"))
    assert live == loaded
    losses, right = [], 0
    for answer, row in zip(live, ROWS, strict=True):
        assert_plain(answer, family, result.prompt, row)
        assert answer.label == max(answer.probabilities, key=answer.probabilities.__getitem__)
        losses.append(-torch.tensor(answer.probabilities[row["label"]]).log())
        right += answer.label == row["label"]
    metrics = evaluate(backbone, artifact.load(tmp_path / "p", backbone), ROWS, progress=False)
    assert metrics["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(right / len(ROWS))
    assert result.metrics == pytest.approx({k: metrics[k] for k in result.metrics}, rel=1e-5)


def test_what_was_learned_to_write_is_written():
    backbone = decided_backbone()
    rows = [{**row, "label": "won fell"} for row in ROWS]
    result = learn(backbone, Task("Article: {text}\nTopic:{soft:8} {label}"), rows, rows, steps=60)
    served = Engine(backbone)
    served.add("p", result.prompt)
    asked = [("p", row) for row in ROWS]
    (length,) = {len(ExampleMaker(result.prompt.task, backbone.tokenizer)(row).target) for row in rows}
    assert {(a.text, a.tokens, a.finished) for a in served.generate(asked)} == {("won fell", length, True)}
    assert {(a.tokens, a.finished) for a in served.generate(asked, max_new_tokens=length - 1)} == {(length - 1, False)}
    assert {a.text for a in served.generate(asked, max_new_tokens=length - 1)} == {"won fell"}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_mixed_batch_classifies_as_the_plain_model(family):
    made = engine(family, "classify")
    asked = requests(made)
    for answer, (name, row) in zip(made.classify(asked), asked, strict=True):
        assert_plain(answer, family, made.prompts[name], row)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_mixed_batch_classifies_as_each_request_alone(family):
    made = engine(family, "classify")
    asked = requests(made)
    assert_same(made.classify(asked), [made.classify([request])[0] for request in asked])


def plain_texts(family: str, made: Engine, asked: list[Any], **options: Any) -> list[str]:
    backbone, model = reference.backbone(family), reference.plain(family)
    texts = []
    for name, row in asked:
        p = made.prompts[name]
        maker = ExampleMaker(p.task, backbone.tokenizer)
        ids = reference.generate(model, maker(row, answered=False), p.values.embeddings, **options)
        texts.append(maker.decode(ids))
    return texts


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_mixed_batch_generates_as_the_plain_model(family, options):
    made = engine(family, "generate")
    asked = requests(made, TEXTS[:3])
    answers = made.generate(asked, max_new_tokens=6, **options)
    wanted = plain_texts(family, made, asked, max_new_tokens=6, do_sample=False, pad_token_id=2, **options)
    assert [a.text for a in answers] == wanted


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}],
    ids=["greedy", "beams", "static cache", "no cache"],
)
def test_a_mixed_batch_generates_as_each_request_alone(options):
    made = engine("llama", "generate")
    asked = requests(made)
    together = made.generate(asked, max_new_tokens=5, **options)
    assert together == [made.generate([request], max_new_tokens=5, **options)[0] for request in asked]


def test_caches_change_no_answer():
    made = engine("llama", "generate")
    asked = requests(made)
    plain = made.generate(asked, max_new_tokens=5)
    assert made.generate(asked, max_new_tokens=5, cache_implementation="static") == plain
    assert made.generate(asked, max_new_tokens=5, use_cache=False) == plain


def test_sampling_with_a_seed_is_repeated_and_draws_nothing_from_the_callers_numbers():
    made = engine("llama", "generate")
    asked = requests(made)
    before = torch.get_rng_state()
    one, again, other = (made.generate(asked, max_new_tokens=5, do_sample=True, seed=seed) for seed in (3, 3, 4))
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), before)
    made.generate(asked, max_new_tokens=5, do_sample=True)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_answers_come_in_the_order_of_the_requests(size):
    backbone = reference.backbone("llama")
    made = Engine(backbone, batch_size=size)
    for name, task in CLASSIFYING.items():
        made.add(name, saved(name, task, backbone))
    asked = requests(made)[::-1]
    alone = engine("llama", "classify")
    assert_same(made.classify(asked), [alone.classify([request])[0] for request in asked])
    written = [alone.generate([request], max_new_tokens=2)[0] for request in asked]
    assert made.generate(asked, max_new_tokens=2) == written


def test_no_request_has_no_answer():
    assert engine("llama", "classify").classify([]) == []
    assert engine("llama", "generate").generate([]) == []


def test_prompts_are_added_replaced_and_removed():
    backbone = reference.backbone("llama")
    one, two = prompt(backbone, seed=1), prompt(backbone, seed=2)
    made = Engine(backbone)
    made.add("a", one)
    with pytest.raises(SettingsError, match=r"there is a prompt called 'a' already.*replace=True"):
        made.add("a", two)
    assert made.prompts == {"a": one}
    made.add("a", two, replace=True)
    made.add("b", one)
    assert made.prompts == {"a": two, "b": one}
    made.remove("a")
    assert made.prompts == {"b": one}
    for call in (lambda: made.remove("a"), lambda: made.classify([("a", ROWS[0])])):
        with pytest.raises(UnknownPromptError, match=r"there is no prompt called 'a'\. There are: b"):
            call()
    with pytest.raises(SettingsError, match=r"a prompt needs a name\. Give one"):
        made.add("", one)


def test_a_prompt_of_another_backbone_is_refused_and_the_old_one_stays(tmp_path):
    backbone = reference.backbone("llama")
    made = Engine(backbone)
    kept = prompt(backbone)
    made.add("a", kept)
    other = prompt(tiny.backbone(seed=1))
    artifact.save(other, tmp_path / "other")
    for stranger in (other, tmp_path / "other"):
        with pytest.raises(MismatchError, match="model fingerprint"):
            made.add("a", stranger, replace=True)
    assert made.prompts == {"a": kept}


def test_a_prompt_that_is_longer_than_the_model_is_refused_when_it_is_added():
    backbone = reference.backbone("llama")
    made = Engine(backbone)
    with pytest.raises(LengthError, match="128 are allowed"):
        made.add("long", prompt(backbone, Task("{soft:130}{text}{label}", LABELS)))
    assert made.prompts == {}


def test_replacing_a_prompt_in_a_live_engine_equals_a_fresh_one(tmp_path):
    backbone = reference.backbone("llama")
    live, fresh = Engine(backbone), Engine(backbone)
    asked = [("p", row) for row in ROWS]
    live.add("p", prompt(backbone, seed=1))
    before = live.classify(asked)
    artifact.save(prompt(backbone, seed=2), tmp_path / "p")
    live.add("p", tmp_path / "p", replace=True)
    fresh.add("p", tmp_path / "p")
    assert live.classify(asked) == fresh.classify(asked) != before


def test_two_prompts_of_one_template_do_not_leak_into_each_other():
    backbone = reference.backbone("llama")
    one, two = prompt(backbone, seed=1), prompt(backbone, seed=2)
    alone = []
    for p in (one, two):
        single = Engine(backbone)
        single.add("p", p)
        alone.append(single.classify([("p", row) for row in ROWS]))
    assert alone[0] != alone[1]
    both = Engine(backbone)
    both.add("one", one)
    both.add("two", two)
    for order in (("one", "two"), ("two", "one")):
        answers = both.classify([(name, row) for row in ROWS for name in order])
        for i, name in enumerate(order):
            assert_same(answers[i::2], alone[("one", "two").index(name)])


def tensor_bytes() -> int:
    gc.collect()
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) is torch.Tensor
    }
    return sum(storages.values())


@pytest.mark.parametrize("template", [FRONT, "Long hard text comes first.{soft:4} {text} {label}"])
def test_a_removed_prompt_leaves_nothing_in_memory(template):
    backbone = tiny.backbone()
    made = Engine(backbone)
    made.add("stays", prompt(backbone, Task(BEHIND, LABELS), seed=1))
    before = tensor_bytes()
    for replace in (False, True):
        made.add("goes", prompt(backbone, Task(template, LABELS), seed=2), replace=replace)
        made.classify([("goes", row) for row in ROWS])
        assert tensor_bytes() > before + 8 * 32 * 4
    made.remove("goes")
    assert tensor_bytes() == before
    assert len(made.classify([("stays", row) for row in ROWS])) == len(ROWS)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (("front", {"words": "x"}), RequestError, r"request 2 \(front\): field 'text' is missing"),
        (("front", {"text": ["x"]}), RequestError, r"request 2 \(front\): field 'text' is list"),
        (("nobody", {"text": "x"}), UnknownPromptError, r"request 2 \(nobody\): there is no prompt called 'nobody'"),
        (("front", Row({}, "news.csv, line 7")), RequestError, "news.csv, line 7: field 'text' is missing"),
    ],
)
@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_a_bad_request_is_named_and_nothing_is_run(kind, bad, error, message):
    made = engine("llama", kind)
    asked = requests(made)[:3]
    ask = made.classify if kind == "classify" else made.generate
    before, prompts = ask(asked), made.prompts
    with reference.inputs_of(reference.first_site(made.backbone)) as run, pytest.raises(error, match=message):
        ask([asked[0], bad, asked[2]])
    assert run == []
    assert made.prompts == prompts
    assert ask(asked) == before


def test_a_prompt_that_writes_does_not_classify():
    with pytest.raises(RequestError, match=r"request 1 \(front\): it generates, it has no labels.*Use generate"):
        engine("llama", "generate").classify([("front", ROWS[0])])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_text_that_is_too_long_is_cut_and_answered(family):
    long = {"text": "the market fell, " * 300}
    classifying, generating = engine(family, "classify"), engine(family, "generate")
    for name in CLASSIFYING:
        (answer,) = classifying.classify([(name, long)])
        assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
    asked = [(name, row) for name in GENERATING for row in (long, ROWS[0])]
    classifying_too = [(name, row) for name in CLASSIFYING for row in (long, ROWS[0])]
    assert len(classifying.generate(classifying_too, max_new_tokens=40)) == len(classifying_too)
    # Every position is needed: GPT-2 has no embedding for one more.
    for beams in (1, 2):
        assert all(a.tokens <= 40 for a in generating.generate(asked, max_new_tokens=40, num_beams=beams))


def test_an_answer_for_which_there_is_no_room_is_refused():
    made, empty = engine("llama", "generate"), {"text": ""}
    maker = ExampleMaker(made.prompts["hard"].task, made.backbone.tokenizer)
    room = made.backbone.positions - len(maker(empty, answered=False).tokens)
    assert made.generate([("hard", ROWS[0])], max_new_tokens=room)[0].tokens <= room
    with pytest.raises(LengthError, match=r"request 2 \(front\)"):
        made.generate([("hard", ROWS[0]), ("front", ROWS[0])], max_new_tokens=room)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"beams": 3}, "no option beams"),
        ({"num_return_sequences": 2}, "no option num_return_sequences"),
        ({"return_dict_in_generate": True}, "no option return_dict_in_generate"),
        ({"eos_token_id": 3}, "no option eos_token_id"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"guidance_scale": 2.0}, "no option guidance_scale"),
        ({"temperature": 0.5}, "would do nothing without sampling"),
        ({"cache_implementation": "quantized"}, "'quantized' is not supported"),
        ({"num_beams": 0}, "options"),
        ({"num_beams": "three"}, "options"),
        ({"cache_implementation": "magic"}, "cache_implementation"),
    ],
)
def test_generation_options_that_cannot_be_met_are_refused(options, named):
    with pytest.raises(SettingsError, match=named):
        engine("llama", "generate").generate([("front", ROWS[0])], **options)


def test_a_batch_has_a_row():
    with pytest.raises(SettingsError, match="batch_size is 0"):
        Engine(reference.backbone("llama"), batch_size=0)


def test_a_model_without_end_of_text_is_served():
    tokenizer, model = tiny.tokenizer(), tiny.model("llama")
    tokenizer.eos_token = tokenizer.pad_token = model.generation_config.eos_token_id = model.config.eos_token_id = None
    made = Engine(Backbone(model, tokenizer))
    made.add("p", prompt(made.backbone, WRITING))
    assert [(a.tokens, a.finished) for a in made.generate([("p", row) for row in ROWS], max_new_tokens=3)] == [
        (3, False)
    ] * len(ROWS)


def test_answering_changes_neither_backbone_nor_prompt_also_when_it_fails():
    backbone = tiny.backbone()
    made = Engine(backbone)
    kept = prompt(backbone, WRITING)
    made.add("p", kept)
    before, values = reference.state(backbone.model), kept.values.embeddings.clone()
    made.generate([("p", row) for row in ROWS], max_new_tokens=3, num_beams=2)
    with reference.failing(reference.last_site(backbone)):
        made.generate([("p", ROWS[0])], max_new_tokens=3)
    assert reference.state(backbone.model) == before
    assert torch.equal(kept.values.embeddings, values)
    assert kept.values.embeddings._version == 0


def test_one_text_asked_about_by_several_prompts_is_read_once():
    backbone = tiny.backbone()
    made = Engine(backbone)
    for name in ("a", "b", "c"):
        made.add(name, prompt(backbone, Task(BEHIND, LABELS), seed=ord(name)))
    text = {"text": "the team won the match, the market fell"}

    def computed(names: str) -> int:
        with reference.inputs_of(reference.first_site(backbone)) as seen:
            made.classify([(name, text) for name in names])
        return sum(s.shape[0] * s.shape[1] for s in seen)

    computed("abc")
    one, three = computed("a"), computed("abc")
    rows = computed("abca") - three
    assert three == one + 2 * rows
    assert rows < 10 < one


def test_the_models_own_generation_defaults_are_not_taken_over():
    plain, wilful = tiny.backbone(), tiny.backbone()
    wilful.model.generation_config.repetition_penalty = 50.0
    wilful.model.generation_config.suppress_tokens = list(range(5, 300))
    answers = []
    for backbone in (plain, wilful):
        asked = Engine(backbone)
        asked.add("p", prompt(backbone, WRITING))
        answers.append(asked.generate([("p", row) for row in ROWS], max_new_tokens=6))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("asked", [("front", ROWS[0]), [["front", ROWS[0]]], [("front",)], "front"])
def test_what_is_no_list_of_pairs_is_refused(asked):
    with pytest.raises(RequestError, match=r"request 1: it is .*Give a list of pairs"):
        engine("llama", "classify").classify(asked)


def test_an_answer_says_how_much_of_its_row_was_cut():
    backbone = reference.backbone("llama")
    asked = Engine(backbone)
    asked.add("p", prompt(backbone, TOPICS))
    long = {"text": "the team won the match " * 100}
    short, cut = asked.classify([("p", ROWS[0]), ("p", long)])
    assert (short.cut, cut.cut > 0) == (0, True)
    short, cut = asked.generate([("p", ROWS[0]), ("p", long)], max_new_tokens=2)
    assert (short.cut, cut.cut > 0) == (0, True)
