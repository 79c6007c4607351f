"""Every kind of task from the command line: train, measure, predict."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

import tiny
from commands import assert_refused, rows, run
from softprompt import artifact
from toys import HEADED, KINDS, LABELS, ROWS, kinds_of, rows_of

FAMILIES = {"decoder": "llama", "encoder": "bert", "encoder-decoder": "t5"}
KEYS = {
    "generation": {"text", "tokens", "finished", "cut"},
    "classification": {"label", "probabilities", "cut"},
    "multi-label": {"labels", "probabilities", "cut"},
    "sequence-classification": {"label", "probabilities", "cut"},
    "token-classification": {"labels", "probabilities", "cut"},
    "question-answering": {"text", "start", "end", "probability", "cut"},
    "feature-extraction": {"vector", "cut"},
}
METRICS = {
    "generation": {"loss", "perplexity", "token_accuracy"},
    "classification": {"accuracy", "macro_f1", "loss"},
    "multi-label": {"accuracy", "micro_f1", "macro_f1", "loss"},
    "sequence-classification": {"accuracy", "macro_f1", "loss"},
    "token-classification": {"accuracy", "macro_f1", "loss"},
    "question-answering": {"accuracy", "f1", "loss"},
    "feature-extraction": {"accuracy", "loss"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a model of each kind, and rows for each kind of task."""
    home = tmp_path_factory.mktemp("home")
    for name, family in FAMILIES.items():
        tiny.model(family).save_pretrained(home / name)
        tiny.tokenizer_of(family).save_pretrained(home / name)
    tiny.model("bert").base_model.save_pretrained(home / "headless")
    tiny.tokenizer_of("bert").save_pretrained(home / "headless")
    for kind in KINDS:
        rows(home / f"{kind}.jsonl", rows_of(kind))
    rows(home / "notes.jsonl", [{"text": "the team", "note": "x", "label": LABELS}])
    rows(home / "far.jsonl", [{"text": "the team won " * 9 + "fell", "label": "fell"}] * 2)
    return home


@pytest.fixture(autouse=True)
def here(home, tmp_path, monkeypatch) -> Path:
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(kind: str, model: str, *more: str, out: str = "p", **options: object):
    template = "Article: {text}"
    if kind in ("generation", "classification", "multi-label"):
        template += r"\nTopic: " + ("{mask}" if model in ("encoder", "headless") else "{label}")
    given = {"kind": kind, "model": model, "template": template, "out": out, "data": f"{kind}.jsonl"}
    given |= {"eval-data": f"{kind}.jsonl", "steps": 3, "batch-size": 4, "tokens": 4}
    if "classification" in kind or kind == "multi-label":
        given["labels"] = ",".join(LABELS)
    if kind == "multi-label":
        given["none"] = "yes"
    given |= {name.replace("_", "-"): value for name, value in options.items()}
    parts = (part for name, value in given.items() if value is not None for part in (f"--{name}", value))
    return run("train", "--quiet", *parts, *more)


def pairs() -> list[tuple[str, str]]:
    return [(model, kind) for model, family in FAMILIES.items() for kind in kinds_of(family)]


@pytest.mark.parametrize(("model", "kind"), pairs())
def test_a_prompt_of_every_kind_is_trained_measured_and_asked(model, kind):
    trained = train(kind, model, "--json")
    assert trained.exit_code == 0, trained.output
    facts = json.loads(trained.stdout)
    assert facts["metrics"].keys() == METRICS[kind]
    saved = artifact.load("p")
    assert (saved.task.kind, saved.head is not None) == (kind, kind in HEADED)
    assert facts["bytes"] == saved.nbytes
    measured = json.loads(run("eval", "p", "--data", f"{kind}.jsonl", "--json", "-q").stdout)
    counts = {"rows_cut": 0} | ({"answers_missed": 0} if kind in HEADED[1:] else {})
    assert measured["metrics"] == pytest.approx(facts["metrics"] | counts, rel=1e-4)
    room = ["--max-new-tokens", "3"] if kind == "generation" else []
    asked = run("predict", "p", "--data", f"{kind}.jsonl", "--json", "-q", *room)
    answers = [json.loads(line) for line in asked.stdout.splitlines()]
    assert [answer.keys() for answer in answers] == [KEYS[kind]] * len(ROWS)
    check(kind, answers)
    plain = run("predict", "p", "--data", f"{kind}.jsonl", "-q", *room)
    assert plain.exit_code == 0
    assert len(plain.stdout.splitlines()) == len(ROWS)
    alone = run("predict", "p", "--text", ROWS[0]["text"], *room)
    assert alone.exit_code == 0
    shown = re.sub(r" \(\d+\.\d%\)", "", alone.stdout.rstrip("\n"))
    if kind not in ("generation", "feature-extraction"):
        assert shown == plain.stdout.splitlines()[0]


def check(kind: str, answers: list[dict]) -> None:
    for answer, row in zip(answers, ROWS, strict=True):
        match kind:
            case "classification" | "sequence-classification":
                assert answer["label"] in LABELS
                assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
            case "multi-label":
                assert answer["labels"] == [name for name in LABELS if answer["probabilities"][name] > 0.5]
            case "token-classification":
                assert len(answer["labels"]) == len(row["text"].split())
                assert set(answer["labels"]) <= set(LABELS)
            case "question-answering":
                assert row["text"][answer["start"] : answer["end"]] == answer["text"]
            case "feature-extraction":
                assert len(answer["vector"]) == 32


def test_settings_of_a_task_are_kept():
    options = {"field": "text", "target": "tags", "max_length": 60, "template": "{text} of {other}"}
    rows(
        Path("tags.jsonl"), [{"text": "a b", "other": "x", "tags": "A B"}, {"text": ["c"], "other": "y", "tags": ["A"]}]
    )
    result = train("token-classification", "encoder", labels="A,B", data="tags.jsonl", eval_data=None, **options)
    assert result.exit_code == 0, result.output
    task = artifact.load("p").task
    assert (task.field, task.target, task.max_length, task.labels) == ("text", "tags", 60, ("A", "B"))
    assert "read inside `text`" in Path("p/README.md").read_text()


def test_answers_of_several_labels_and_of_words_stand_in_a_table():
    with open("rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["text", "label"], ["the team", "sports|business"], ["the market", ""], ["x", "business"]])
    assert train("multi-label", "decoder", data="rows.csv", eval_data="rows.csv").exit_code == 0
    with open("tags.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], ["the team", "sports business"], ["x", "sports"]])
    assert train("token-classification", "encoder", data="tags.csv", eval_data="tags.csv", out="q").exit_code == 0
    lines = run("predict", "q", "--data", "tags.csv", "-q").stdout.splitlines()
    assert [len(line.split()) for line in lines] == [2, 1]


def test_where_no_label_applies_the_line_says_so():
    rows(Path("none.jsonl"), [{"text": row["text"], "label": []} for row in ROWS[:4]])
    options = {"data": "none.jsonl", "steps": 30, "learning-rate": 0.5}
    assert train("multi-label", "decoder", **options).exit_code == 0
    assert run("predict", "p", "--data", "none.jsonl", "-q").stdout == "-\n" * 4
    assert run("predict", "p", "--text", ROWS[0]["text"]).stdout == "-\n"
    assert json.loads(run("predict", "p", "--text", ROWS[0]["text"], "--json").stdout)["labels"] == []


def test_a_head_alone_takes_settings():
    for name, value in (("steps", 2), ("learning_rate", 0.1)):
        options = {"method": "hard-prompt", "tokens": None, name: value}
        assert train("sequence-classification", "encoder", "--overwrite", **options).exit_code == 0
        assert artifact.load("p").training[name] == value


def test_a_linear_probe_is_trained():
    options = {"method": "hard-prompt", "tokens": None, "steps": 5}
    assert train("sequence-classification", "encoder", **options).exit_code == 0
    saved = artifact.load("p")
    assert (saved.values.tokens, saved.method.NAME, saved.training["steps"]) == (0, "hard-prompt", 5)
    assert "linear layer" in Path("p/README.md").read_text()


def test_an_encoder_without_its_head_is_trained_with_one_of_the_tasks():
    assert train("sequence-classification", "headless").exit_code == 0
    assert_refused(
        train("classification", "headless", out="q"), "headless: it has no language modelling head.*sequence-class"
    )


BAD = {
    "unknown kind": ("tagging", "encoder", {}, "kind: kind 'tagging' is unknown. Use one of generation"),
    "labels of a question": ("question-answering", "encoder", {"labels": "a,b"}, "a question-answering has no labels"),
    "labels of vectors": ("feature-extraction", "encoder", {"labels": "a,b"}, "a feature-extraction has no labels"),
    "no labels": ("token-classification", "encoder", {"labels": None}, "needs two labels or more"),
    "no answer place": ("multi-label", "decoder", {"template": "{text}"}, "{label} stands in it 0 times"),
    "an answer place": (
        "sequence-classification",
        "decoder",
        {"template": "{text}{label}"},
        "a sequence-classification is not answered in words",
    ),
    "a mask for a decoder": (
        "classification",
        "decoder",
        {"template": "{text}{mask}"},
        "{mask} is filled by encoders, and this model is a decoder. Put {label} at the end",
    ),
    "a label for an encoder": (
        "classification",
        "encoder",
        {"template": "{text}{label}"},
        "an encoder writes nothing.*Put {mask}",
    ),
    "writing by an encoder": ("generation", "encoder", {}, "{mask} is filled by one of the labels"),
    "a stop that is not": ("generation", "decoder", {"template": "{text}{sep}{label}"}, "puts nothing behind a text"),
    "no such field": ("question-answering", "encoder", {"field": "x"}, "it has no field {x}"),
    "a field of another kind": (
        "classification",
        "decoder",
        {"field": "text"},
        "--field|field: a classification is not",
    ),
    "the answer's field": ("question-answering", "encoder", {"target": "text"}, "field {text} is also the target"),
    "a label that means none": (
        "multi-label",
        "decoder",
        {"none": "sports"},
        "'sports' is a label's word and the word",
    ),
    "a none of one label": (
        "classification",
        "decoder",
        {"none": "none"},
        "none: a classification has no word for no la",
    ),
    "steps of nothing learned": (
        "classification",
        "nowhere",  # refused before the model is looked for
        {"method": "hard-prompt", "tokens": None, "template": "{text}{label}"},
        "a hard-prompt learns nothing, so it takes no batch_size, steps. Leave it out",
    ),
    "words of another field": (
        "token-classification",
        "encoder",
        {"template": "{text} {note}", "data": "notes.jsonl", "eval-data": None},
        "notes.jsonl, line 1: field 'note' has 1 words, but 'label' 2 labels. It goes with {text}: .*--field text",
    ),
    "an answer that is cut away": (
        "question-answering",
        "encoder",
        {"max_length": 14, "data": "far.jsonl"},
        "max_length: all of the 2 training rows lost their answer.*Raise max_length",
    ),
    "an empty none": ("multi-label", "decoder", {"none": ""}, "the word for none is empty"),
    "a mask of two tokens": (
        "classification",
        "encoder",
        {"labels": "sports=the market,business=won"},
        "label word 'the market' is 2 tokens",
    ),
    "labels to begin with": ("sequence-classification", "encoder", {"init": "labels"}, "needs a task with label words"),
    "a slot that nothing sees": (
        "token-classification",
        "decoder",
        {"template": "{text}{soft}"},
        "a slot stands behind {text}",
    ),
    "rows of another kind": (
        "question-answering",
        "encoder",
        {"data": "token-classification.jsonl"},
        "line 1: field 'label'",
    ),
    "words without labels": (
        "token-classification",
        "encoder",
        {"data": "classification.jsonl"},
        "classification.jsonl, line 1: field 'text' has 3 words, but 'label' 1 labels",
    ),
}


@pytest.mark.parametrize(("kind", "model", "options", "message"), BAD.values(), ids=BAD)
def test_a_request_that_cannot_be_met_is_refused_in_one_line(here, kind, model, options, message):
    assert_refused(train(kind, model, **options), message)
    assert not (here / "p").exists()
