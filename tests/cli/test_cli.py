from __future__ import annotations

import csv
import json
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

import tiny
from commands import assert_refused, rows, run
from softprompt import artifact
from softprompt.cli import app
from softprompt.cli.predict import _one_line
from softprompt.learn.checkpoints import last_checkpoint
from softprompt.learn.trainer import LearnerTrainer
from toys import BEHIND, FRONT, ROWS, contents, png_size

TEMPLATE = r"{soft:4}Article: {text}\nTopic: {label}"
VERBS = ("train", "eval", "predict", "inspect")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a model, rows, and one prompt of each kind."""
    home = tmp_path_factory.mktemp("home")
    tiny.model("llama").save_pretrained(home / "model")
    tiny.tokenizer().save_pretrained(home / "model")
    tiny.model("llama", seed=1).save_pretrained(home / "other")
    tiny.tokenizer().save_pretrained(home / "other")
    rows(home / "rows.jsonl", ROWS)
    (home / "texts.csv").write_text("text\n" + "".join(f'"{row["text"]}"\n' for row in ROWS * 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert train("topic").exit_code == 0
        assert train("titles", labels=None).exit_code == 0
        assert train("hard", "--method", "hard-prompt", template="{text}: {label}").exit_code == 0
    return home


@pytest.fixture
def here(home, tmp_path, monkeypatch) -> Path:
    """A folder of the test's own, with the model and the rows of `home`."""
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(out: str, *more: str, template: str = TEMPLATE, labels: str | None = "sports,business", **options):
    """A `train` command."""
    given = {"data": "rows.jsonl", "eval-data": "rows.jsonl", "model": "model", "steps": "4", "batch-size": "4"}
    given |= {"template": template, "out": out} | ({"labels": labels} if labels else {})
    given |= {name.replace("_", "-"): str(value) for name, value in options.items()}
    return ["train", "--quiet", *(part for name, value in given.items() for part in (f"--{name}", value)), *more]


def train(*args: str, **options):
    return run(*arguments(*args, **options))


@pytest.mark.parametrize(
    ("text", "line"), [("a\nb", r"a\nb"), ("\r\u2028", r"\r\u2028"), ("\x85", r"\x85"), ("é雨", "é雨")]
)
def test_an_answer_of_several_lines_is_shown_on_one(text, line):
    assert _one_line(text) == line


def test_a_prompt_is_trained_measured_used_and_looked_at(here):
    trained = train("p")
    assert trained.exit_code == 0, trained.output
    for shown in ("accuracy", "macro_f1", "loss", "Saved to p: 4 virtual tokens, 512 bytes."):
        assert shown in trained.stdout
    measured = run("eval", "p", "--data", "rows.jsonl", "-q")
    assert measured.exit_code == 0
    assert "accuracy" in measured.stdout
    assert re.search(r"rows +│ +6", measured.stdout)
    predicted = run("predict", "p", "--text", "the team won")
    assert re.fullmatch(r"(sports|business) \(\d+\.\d%\)\n", predicted.stdout)
    looked_at = run("inspect", "p")
    assert looked_at.exit_code == 0
    assert "prompt-tuning for model, 512 bytes" in looked_at.stdout


def test_what_is_trained_is_what_was_asked_for(here):
    options = {"seed": 3, "learning_rate": 0.25, "schedule": "constant", "warmup": 0.5, "weight_decay": 0.1}
    more = {"max_grad_norm": 2.0, "loss": "vocabulary", "eval_every": 2, "cache_bytes": 9, "batch_size": 3, "steps": 5}
    task = {"target": "label", "max_length": 90, "labels": "sports=won, business=the market"}
    named = {"init": "text", "init_text": "some words", "tokens": 6, "dtype": "bfloat16"}
    assert train("p", template="{soft}{text}: {label}", **options, **more, **task, **named).exit_code == 0
    saved = artifact.load(here / "p")
    assert (options | more).items() <= saved.training.items()
    assert saved.task.template.source == "{soft:6}{text}: {label}"
    assert dict(zip(saved.task.labels, saved.task.words, strict=True)) == {"sports": "won", "business": "the market"}
    assert saved.task.max_length == 90
    assert saved.method.settings() == {"tokens": 6, "init": "text", "text": "some words"}
    assert saved.dtype == "bfloat16"


def test_a_backslash_n_is_a_line_break(here):
    assert train("p").exit_code == 0
    assert artifact.load(here / "p").task.template.source == FRONT


def test_every_verb_speaks_json(here):
    trained = json.loads(train("p", "--json").stdout)
    assert trained["path"] == "p"
    assert trained["bytes"] == 512
    assert trained["training"]["steps"] == 4
    measured = json.loads(run("eval", "p", "--data", "rows.jsonl", "--json", "-q").stdout)
    assert measured["rows"] == 6
    assert measured["metrics"] == pytest.approx(trained["metrics"] | {"rows_cut": 0}, rel=1e-5)
    predicted = json.loads(run("predict", "p", "text=the team won", "--json").stdout)
    assert predicted["label"] in ("sports", "business")
    assert sum(predicted["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    lines = run("predict", "p", "--data", "texts.csv", "--json", "-q").stdout.splitlines()
    assert len([json.loads(line)["label"] for line in lines]) == 30
    written = json.loads(run("predict", "titles", "--text", "x", "--max-new-tokens", "3", "--json").stdout)
    assert written.keys() == {"text", "tokens", "finished", "cut"}
    looked_at = json.loads(run("inspect", "p", "--json").stdout)
    assert [t["index"] for t in looked_at["tokens"]] == [0, 1, 2, 3]
    assert len(looked_at["tokens"][0]["nearest"]) == 3


@pytest.mark.parametrize("verb", [["eval", "nowhere", "--data", "rows.jsonl"], ["inspect", "nowhere"]])
def test_an_error_is_json_too_when_asked_for(here, verb):
    result = run(*verb, "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert error["type"] == "ArtifactError"
    assert error["where"] == "nowhere"
    assert "no such folder" in error["message"]
    assert error["instead"]


@pytest.mark.parametrize("name", ["topic", "titles", "hard"])
def test_the_answers_to_a_file_are_its_lines_in_order(here, name):
    answers = run("predict", name, "--data", "texts.csv", "-q", "--batch-size", "2", "--max-new-tokens", "5")
    assert answers.exit_code == 0
    with open("texts.csv") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    lines = answers.stdout.removesuffix("\n").split("\n")
    assert len(lines) == len(texts) == 30
    assert len(answers.stdout.splitlines()) == 30
    as_json = run("predict", name, "--data", "texts.csv", "-q", "--max-new-tokens", "5", "--json").stdout.splitlines()
    answer = "text" if name == "titles" else "label"
    alone = {t: run("predict", name, "--text", t, "--max-new-tokens", "5", "--json").stdout for t in set(texts)}
    assert [json.loads(line)[answer] for line in as_json] == [json.loads(alone[t])[answer] for t in texts]
    assert lines == [_one_line(json.loads(line)[answer]) for line in as_json]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "takes a row or a file of rows"),
        (["--text", "x", "--data", "rows.jsonl"], "one of them only"),
        (["text"], "'text' is no FIELD=VALUE"),
        (["=x"], "'=x' is no FIELD=VALUE"),
        (["words=x"], "field 'text' is missing. The row has 'words'"),
    ],
)
def test_a_row_is_given_in_one_way(here, row, message):
    assert_refused(run("predict", "topic", *row), message)


def test_a_table_has_a_row_for_each_virtual_token(here):
    assert train("p", "--tokens", "7", template="{soft}{text}{soft:2}: {label}").exit_code == 0
    table = run("inspect", "p", "--nearest", "2").stdout
    found = re.findall(r"^│ +(\d+) │ +(\d+) │", table, re.MULTILINE)
    assert found == [(str(i), "0" if i < 7 else "1") for i in range(9)]
    assert "norms of the vocabulary" in table


def test_a_hard_prompt_is_looked_at(here):
    assert "It has no virtual token: it is text." in run("inspect", "hard").stdout


def test_a_picture_is_drawn(here):
    result = run("inspect", "topic", "--plot", "picture.png")
    assert result.exit_code == 0
    assert "Picture: picture.png" in result.stdout
    width, height = png_size((here / "picture.png").read_bytes())
    assert width > 1000
    assert height > 400
    assert_refused(run("inspect", "hard", "--plot", "picture.png"), "no virtual token to draw")
    assert_refused(run("inspect", "topic", "--plot", "nowhere/picture.png"), "cannot be written")


BAD_ROWS = {
    "missing field": ([ROWS[0], {"label": "sports"}], "bad.jsonl, line 2: field 'text' is missing"),
    "missing answer": ([ROWS[0], {"text": "x"}], "bad.jsonl, line 2: field 'label' is missing"),
    "unknown label": (
        [ROWS[0], {"text": "x", "label": "chess"}],
        "bad.jsonl, line 2: unknown label 'chess'.*sports, business",
    ),
    "no text": ([{"text": ["x"], "label": "sports"}], "bad.jsonl, line 1: field 'text' is list"),
    "no object": ([1], "bad.jsonl, line 1: it is a JSON number"),
    "no row": ([], "bad.jsonl: there is no row in it"),
}


@pytest.mark.parametrize(("content", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(here, content, message):
    rows(here / "bad.jsonl", content)
    assert_refused(train("p", data="bad.jsonl"), message)
    assert_refused(train("p", eval_data="bad.jsonl"), message)
    assert_refused(run("eval", "topic", "--data", "bad.jsonl"), message)
    assert not (here / "p").exists()
    assert not (here / "p.checkpoints").exists()


def test_a_line_that_is_no_json_is_named(here):
    (here / "bad.jsonl").write_text('{"text": "x", "label": "sports"}\nsports: x\n')
    assert_refused(train("p", data="bad.jsonl"), "bad.jsonl, line 2: it is no JSON")


BAD_OPTIONS = {
    "two targets": ({"template": "{text}{label}{label}"}, "{label} or {mask} stands in it 2 times"),
    "no target": ({"template": "{text}"}, "{label} stands in it 0 times"),
    "slot inside a field": ({"template": "{text{soft:3}}{label}"}, "a brace stands alone at character 1"),
    "slot as a field's argument": ({"template": "{text:{soft}} {label}"}, "a brace stands alone"),
    "slot without length": ({"template": "{soft:0}{text}{label}"}, "has no length"),
    "answer as a field": ({"target": "text"}, r"field {text} is also the target"),
    "one label": ({"labels": "sports"}, "two labels or more"),
    "label twice": ({"labels": "a,b,a"}, "stands twice"),
    "label with two words": ({"labels": "a=x,b=y,a=z"}, "a label stands twice"),
    "words for some": ({"labels": "a=x,b"}, "some labels have a word and some have none"),
    "empty label": ({"labels": "a,,b"}, "empty label"),
    "same words": ({"labels": "sports=won,business=won"}, "stands twice"),
    "one word begins the other": (
        {"labels": "sports=won,business=won fell"},
        "cannot be told apart: one begins the other",
    ),
    "too long a slot": ({"template": "{soft:128}{text}: {label}"}, "only 128 are allowed"),
    "too long an anchor": ({"template": "won, " * 90 + "{text}{label}"}, "only 128 are allowed"),
    "too little room": ({"max_length": 7}, "only 7 are allowed"),
    "no such method": ({"method": "magic"}, "method 'magic' is unknown"),
    "no such init": ({"init": "magic"}, "init 'magic' is unknown"),
    "no text for init": ({"init": "text"}, "needs a text"),
    "setting of another method": ({"method": "hard-prompt", "tokens": 3}, "no setting tokens"),
    "no steps": ({"steps": 0}, "steps is 0"),
    "seed": ({"seed": 2**32}, "seed is 4294967296"),
    "no such dtype": ({"dtype": "int8"}, "dtype 'int8' is unknown"),
    "no such model": ({"model": "nowhere"}, "nowhere: no such folder"),
    "a prompt for a model": ({"model": "topic"}, "it holds a prompt, not a model"),
    "model of the Hub": ({"model": "owner/name"}, "owner/name: .*the Hub cannot be reached or has no such model"),
    "data of the Hub": ({"data": "owner/name"}, "owner/name: no such file, and the Hub gives no such dataset"),
    "no such data": ({"data": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
    "prompt stands there": ({"out": "topic"}, "topic: a prompt stands there.*--overwrite"),
    "model stands there": ({"out": "model"}, "model: something other than a prompt stands there"),
    "file stands there": ({"out": "rows.jsonl"}, "something other than a prompt stands there"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_request_that_cannot_be_met_is_refused_in_one_line(here, options, message):
    before = {p.name for p in here.iterdir()}
    assert_refused(train(**{"out": "p"} | options), message)
    assert {p.name for p in here.iterdir()} == before


def test_labels_whose_words_begin_alike_are_told_apart_as_whole_words(here):
    labels = "sports=the match,business=the market"
    assert train("p", labels=labels, steps=60, learning_rate=0.3, template=BEHIND.replace("\n", r"\n")).exit_code == 0
    answers = run("predict", "p", "--data", "rows.jsonl", "-q", "--json").stdout.splitlines()
    for answer in map(json.loads, answers):
        assert list(answer["probabilities"]) == ["sports", "business"]
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    measured = json.loads(run("eval", "p", "--data", "rows.jsonl", "-q", "--json").stdout)["metrics"]
    right = sum(json.loads(a)["label"] == row["label"] for a, row in zip(answers, ROWS, strict=True))
    assert measured["accuracy"] == pytest.approx(right / len(ROWS))


@pytest.mark.parametrize("verb", [["eval", "--data", "rows.jsonl"], ["predict", "--text", "x"], ["inspect"]])
def test_a_saved_prompt_that_does_not_fit_is_refused(here, verb):
    name, *options = verb
    assert_refused(run(name, "topic", *options, "--model", "other"), "model fingerprint", "Load 'model'")
    (here / "damaged").mkdir()
    for file in (here / "topic").iterdir():
        shutil.copy(file, here / "damaged")
    (here / "damaged" / artifact.PROMPT).write_bytes(b"\x00" * 100)
    assert_refused(run(name, "damaged", *options), "damaged/prompt.safetensors: it is damaged")
    assert_refused(run(name, "nowhere", *options), "nowhere: there is no such folder")


def test_a_standing_prompt_is_replaced_when_told(here):
    assert train("p").exit_code == 0
    assert_refused(train("p", seed=1), "--overwrite")
    assert train("p", "--overwrite", seed=1).exit_code == 0
    assert artifact.load(here / "p").training["seed"] == 1


def test_a_loss_that_is_no_number_is_a_failure_of_the_work(here):
    tensors = load_file("model/model.safetensors")
    shutil.copytree("model", "overflowing")
    tensors["lm_head.weight"] = torch.full_like(tensors["lm_head.weight"], 3e38)
    save_file(tensors, "overflowing/model.safetensors", {"format": "pt"})
    assert_refused(train("p", model="overflowing"), r"the loss is (nan|inf) at step 1", "learning rate", status=1)
    assert not (here / "p").exists()


def test_a_failure_that_nobody_foresaw_is_one_line(here, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(LearnerTrainer, "compute_loss", fail)
    assert_refused(train("p"), "ZeroDivisionError: a bug. --debug shows where", status=1)
    assert isinstance(train("p", "--debug").exception, ZeroDivisionError)


def test_rows_that_were_shortened_are_told(here):
    rows(here / "long.jsonl", [*ROWS, {"text": "won " * 500, "label": "sports"}])
    assert "1 of 13 rows were too long" in train("p", data="long.jsonl").stdout


def command(*args: str) -> subprocess.Popen[str]:
    """The `softprompt` command in a process of its own."""
    script = "import torch; torch.set_num_threads(1); from softprompt.cli import main; main()"
    lines = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.Popen(lines, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_debug_shows_where_it_happened(here):
    assert_refused(run("predict", "nowhere", "--text", "x"), "nowhere: there is no such folder. Give a prompt's folder")
    shown = command("predict", "nowhere", "--text", "x", "--debug")
    stderr = shown.communicate(timeout=60)[1]
    assert shown.returncode != 0
    assert "Traceback" in stderr
    assert "ArtifactError" in stderr


def test_a_run_stopped_by_ctrl_c_says_how_to_go_on_and_does(here):
    options = arguments("p", steps=4000, labels=None, eval_every=4000)
    process = command(*options)
    folder, deadline = here / "p.checkpoints", time.monotonic() + 50
    while not list(folder.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr == "softprompt: interrupted; the same command with --resume goes on with it\n"
    assert not (here / "p").exists()
    assert_refused(run(*options), "an interrupted run stands there.*--resume")
    # The rest of so long a run is cut short: what matters is that it is the rest.
    begun = []

    def note(self, checkpoint):
        begun.append(checkpoint.name)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearnerTrainer, "run", note)
        assert run(*options, "--resume").exit_code == 130
    assert begun == [last_checkpoint(folder).name]


def test_an_interrupted_command_is_finished_by_resume(here, monkeypatch):
    assert train("straight", steps=12).exit_code == 0
    steps = []

    def interrupt_at_7(self, *args, **kwargs):
        steps.append(self.state.global_step + 1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    compute_loss = LearnerTrainer.compute_loss
    monkeypatch.setattr(LearnerTrainer, "compute_loss", interrupt_at_7)
    stopped = train("p", steps=12)
    assert stopped.exit_code == 130
    assert stopped.stderr == "softprompt: interrupted; the same command with --resume goes on with it\n"
    assert train("p", "--resume", steps=12).exit_code == 0
    assert steps == [*range(1, 9), *range(6, 13)]
    assert contents(here / "p")[artifact.PROMPT] == contents(here / "straight")[artifact.PROMPT]


def test_help_answers_at_once_and_loads_nothing_heavy():
    # Time on the processor: on the wall it would be that of whatever else is running, too.
    installed, times = Path(sys.executable).with_name("softprompt"), []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([installed, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert statistics.median(times) < 0.5
    assert all(verb in done.stdout for verb in VERBS)
    script = "import sys; from softprompt.cli import app\ntry: app(['train', '--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "typer" in done.stdout.split()
    assert not {"torch", "transformers", "datasets", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_verb_is_explained(verb):
    made = typer.main.get_command(app).commands[verb]
    assert made.help
    for parameter in made.params:
        assert parameter.help, parameter.name
    assert run(verb, "--help").exit_code == 0


def test_usage_errors_exit_with_2():
    for wrong in (["trian"], ["train"], ["train", "--step", "3"], ["eval"], ["inspect", "x", "--nearest", "0"]):
        assert run(*wrong).exit_code == 2
    assert run("--version").stdout.startswith("softprompt ")
