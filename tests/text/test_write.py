from __future__ import annotations

import copy
from types import MappingProxyType

import pytest

import tiny
from softprompt.data import Row
from softprompt.errors import DataError, LabelError, LengthError
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task
from softprompt.text.worked import Recipe, WorkedExamples
from softprompt.text.write import work

TOKENIZER = tiny.tokenizer()
TEMPLATE = "Article: {text}\nTopic: {label}"
LABELS = ["sports", "business"]
ROWS = [
    {"text": "the team won", "label": "sports"},
    {"text": "the market fell", "label": "business"},
    {"text": "won", "label": "sports"},
]


def written(template=TEMPLATE, labels=LABELS, rows=ROWS[:2], *, tokenizer=TOKENIZER, positions=None, seed=0, **options):
    recipe = {"examples": 2, "order": "rows", "separator": "\n\n", "example_length": None}
    task = Task(template, labels, max_length=options.pop("max_length", None))
    return work(task, tokenizer, rows, Recipe(**recipe | options), seed, positions)


def runs(worked: WorkedExamples, tokenizer=TOKENIZER) -> list[tuple[str, str]]:
    """Tokens of one kind in a row, as text."""
    found: list[tuple[str, list[int]]] = []
    for token, kind in zip(worked.tokens, worked.kinds, strict=True):
        if not found or found[-1][0] != kind:
            found.append((kind, []))
        found[-1][1].append(token)
    return [(kind, tokenizer.decode(tokens)) for kind, tokens in found]


def asked(worked: WorkedExamples, tokenizer=TOKENIZER) -> list[str]:
    return [
        tokenizer.decode([t for t, a in zip(worked.tokens, worked.answers, strict=True) if a == example])
        for example in range(worked.examples)
    ]


def test_every_token_has_its_kind():
    worked = written()
    assert worked.rows == (1, 2)
    assert runs(worked) == [
        ("format", "Article:"),
        ("input", " the team won"),
        ("format", "\nTopic:"),
        ("label", " sports"),
        ("separator", "\n\n"),
        ("format", "Article:"),
        ("input", " the market fell"),
        ("format", "\nTopic:"),
        ("label", " business"),
        ("separator", "\n\n"),
    ]
    assert len(worked) == len(worked.tokens) == len(worked.kinds) == len(worked.answers)


@pytest.mark.parametrize(
    "template", [TEMPLATE, "{text} of {other}:{label}", "{other}\n{text}{label}", "{{{text}}}{label}"]
)
def test_a_worked_example_has_the_tokens_of_a_query_and_its_word(template):
    rows = [{**row, "other": "the match"} for row in ROWS]
    worked = written(template, rows=rows, separator="")
    maker = ExampleMaker(Task(template, LABELS), TOKENIZER)
    examples = [maker(rows[number - 1]) for number in worked.rows]
    wanted = [token for e in examples for token in (*e.tokens, *maker.verbalizer.words[e.label])]
    assert list(worked.tokens) == wanted


def test_slots_and_bos_are_left_out():
    assert (
        written("{soft}" + TEMPLATE) == written("{soft:7}{bos}" + TEMPLATE) == written("{bos}" + TEMPLATE) == written()
    )


def test_what_stands_before_every_text_is_not_repeated(metaspace):
    worked = written("{soft}" + TEMPLATE, tokenizer=metaspace)
    assert metaspace.bos_token_id not in worked.tokens
    maker = ExampleMaker(Task("{soft:2}" + TEMPLATE, LABELS), metaspace)
    first = maker(ROWS[0]).tokens[3:]
    assert worked.tokens[: len(first)] == first
    assert maker(ROWS[0]).tokens[:3] == (metaspace.bos_token_id, -1, -2)
    # The second begins as the query does, too.
    second = worked.kinds.index("separator") + worked.kinds.count("separator") // 2
    assert worked.tokens[second : second + 2] == first[:2]


def test_the_name_of_a_special_token_in_a_row_is_only_text_and_in_the_template_that_token():
    rows = [{"text": "a</s>b<s>", "label": "sports"}, {"text": "<pad>", "label": "business"}]
    assert not {0, 1, 2} & set(written(rows=rows).tokens)
    worked = written("Article</s>: {text}{label}", rows=rows, separator="<pad>")
    assert (worked.tokens.count(1), worked.tokens.count(2), worked.tokens.count(0)) == (2, 2, 0)
    assert {kind for token, kind in zip(worked.tokens, worked.kinds, strict=True) if token == 1} == {"format"}


def test_a_label_is_written_whole_and_asked_as_a_row_is():
    worked = written(labels={"sports": "won the match", "business": "fell"})
    assert [text for kind, text in runs(worked) if kind == "label"] == [" won the match", " fell"]
    firsts = [TOKENIZER.decode(TOKENIZER(word)["input_ids"][0]) for word in (" won the match", " fell")]
    assert asked(worked) == firsts != [" won the match", " fell"]
    alike = written(labels={"sports": "the match", "business": "the market"})
    assert asked(alike) == [" the match", " the market"]


def test_a_generated_answer_is_written_and_asked_with_its_end():
    worked = written(labels=None, rows=[{"text": "won", "label": "two words"}, ROWS[1]])
    assert [text for kind, text in runs(worked) if kind == "label"] == [" two words</s>", " business</s>"]
    assert asked(worked) == [" two words</s>", " business</s>"]


def test_fields_alone_are_shortened():
    rows = [{"text": "the team won the match " * 9, "other": "won", "label": label} for label in LABELS]
    worked = written("Article: {text} of {other}\nTopic: {label}", rows=rows, example_length=6)
    longer = written("Article: {text} of {other}\nTopic: {label}", rows=rows)
    assert worked.kinds.count("input") == 2 * 6
    for kind in ("format", "label", "separator"):
        assert worked.kinds.count(kind) == longer.kinds.count(kind)
    assert ("input", " won") in runs(worked), "the longest field gives"


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_writes_the_same(seed):
    rows = ROWS * 5
    assert written(rows=rows, seed=seed, examples=5, order="drawn") == written(
        rows=rows, seed=seed, examples=5, order="drawn"
    )
    assert written(rows=rows, seed=seed, examples=5) != written(rows=rows, seed=seed + 1, examples=5)


def test_the_callers_rows_are_not_touched():
    rows = tuple(MappingProxyType(copy.deepcopy(row)) for row in ROWS)
    assert written(rows=rows) == written(rows=ROWS)
    assert [dict(row) for row in rows] == ROWS


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([ROWS[0], {"text": "x", "label": "tech"}], LabelError, "row 2: unknown label 'tech'"),
        ([ROWS[0], {"text": "x"}], DataError, "row 2: field 'label' is missing"),
        ([ROWS[0], Row({"label": "sports"}, "a.csv, line 3")], DataError, "a.csv, line 3: field 'text' is missing"),
        ([ROWS[0], "text label"], DataError, "row 2: the row is str"),
        (ROWS[:1], DataError, "2 worked examples are asked for, but there are 1 rows"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, error, message):
    with pytest.raises(error) as refused:
        written(rows=rows)
    assert message in str(refused.value)


@pytest.mark.parametrize("bound", ["positions", "max_length"])
def test_worked_examples_leave_room_for_a_row_like_the_longest_of_them(bound):
    worked = written()
    separator = len(TOKENIZER("\n\n")["input_ids"])
    longest = max(len(written(rows=[row], examples=1)) for row in ROWS[:2]) - separator
    enough = len(worked) + longest
    assert written(**{bound: enough}) == worked
    with pytest.raises(LengthError) as refused:
        written(**{bound: enough - 1})
    assert f"take {len(worked)} tokens and a row like the longest of them {longest}, but only {enough - 1}" in str(
        refused.value
    )
    assert "Lower examples or example_length" in refused.value.instead
    assert ("raise max_length" in refused.value.instead) == (bound == "max_length")
    assert written(**{bound: enough - 1}, example_length=2).tokens
