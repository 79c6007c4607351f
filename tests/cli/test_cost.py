"""Options that say what a training costs, or what it may take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
from commands import assert_refused, rows, run
from toys import ROWS

TEMPLATE = r"Article: {text}{soft:4}\nTopic: {label}"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.model("llama").save_pretrained("model")
    tiny.tokenizer().save_pretrained("model")
    rows(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


def train(out: str, *more: str, template: str = TEMPLATE):
    given = ["--data", "rows.jsonl", "--model", "model", "--labels", "sports,business", "--template", template]
    return run("train", "--quiet", *given, "--steps", "4", "--batch-size", "4", "--out", out, *more)


def facts(out: str) -> dict:
    return json.loads(Path(out, "prompt.json").read_text())["training"]


def test_a_cache_is_shared_by_training_measuring_and_answering(here):
    for number, out in enumerate(("one", "two")):
        result = train(out, "--cache", "texts")
        assert result.exit_code == 0, result.output
        assert (facts(out)["texts_from_cache"] > 0) == (number == 1)
    there = sorted(Path("texts").rglob("*.safetensors"))
    assert run("eval", "two", "--data", "rows.jsonl", "--cache", "texts", "--quiet").exit_code == 0
    assert run("predict", "two", "--data", "rows.jsonl", "--cache", "texts", "--quiet").exit_code == 0
    assert sorted(Path("texts").rglob("*.safetensors")) == there
    assert_refused(train("three", "--cache", "rows.jsonl"), "rows.jsonl: it is a file, not a folder")
    assert not Path("three").exists()


def test_a_profile_is_shown_and_written(here):
    result = train("topic", "--profile", "costs", template=r"{soft:4}{text}\nTopic: {label}")
    assert result.exit_code == 0, result.output
    assert "virtual tokens in front" in result.stdout
    assert {path.name for path in Path("costs").iterdir()} == {"profile.txt", "profile.json", "trace.json"}
    hard = run(
        *("train", "--quiet", "--method", "hard-prompt", "--data", "rows.jsonl", "--model", "model"),
        *("--labels", "sports,business", "--template", "{text} {label}", "--out", "hard", "--profile", "none"),
    )
    assert "there is no profile" in hard.stdout, hard.output


def test_rows_of_like_length_stand_in_one_step_where_that_is_asked(here):
    assert train("apart", template="{soft:2}{text} {label}").exit_code == 0
    assert train("together", "--group-by-length", template="{soft:2}{text} {label}").exit_code == 0
    assert facts("together")["group_by_length"] is True
    assert facts("together")["padding"] <= facts("apart")["padding"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokens", "7"], r"--tokens: every \{soft:N\} of the template says how long it is"),
        (["--eval-every", "2"], "eval_every: eval_every is 2, but there are no rows to evaluate on. .*--eval-data"),
        (["--from", "before", "--init", "random"], "--init: it begins where the prompt of --from ended"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(here, more, message):
    assert_refused(train("topic", *more), message)


def test_a_labels_prompt_writes_nothing_and_is_called_by_its_folder(here):
    assert train("topic").exit_code == 0
    refused = run("predict", "topic", "--text", "x", "--max-new-tokens", "3")
    assert_refused(refused, "--max-new-tokens: a classification writes nothing")
    assert_refused(run("predict", "topic", "title=x"), r"request 1 \(topic\): field 'text' is missing")


def test_a_run_that_was_not_interrupted_is_told_so(here, caplog):
    assert train("topic", "--resume").exit_code == 0
    assert "no interrupted run stands there" in caplog.text
