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
from softprompt.collection import load_all
from softprompt.learn.checkpoints import last_checkpoint
from softprompt.learn.trainer import LearnerTrainer
from toys import BEHIND, FRONT, LABELS, ROWS, TONE_ROWS, contents, png_size

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
        rows(home / "tones.jsonl", TONE_ROWS)
        assert train_sources("sources").exit_code == 0
        assert train("ensemble", "--seeds", "3").exit_code == 0
        assert train("writers", "--seeds", "2", labels=None).exit_code == 0
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
    if "hard-prompt" in more and not options:  # it learns nothing
        del given["steps"], given["batch-size"]
    return ["train", "--quiet", *(part for name, value in given.items() for part in (f"--{name}", value)), *more]


def train(*args: str, **options):
    return run(*arguments(*args, **options))


SOURCES = {
    "data": ["topic=rows.jsonl", "tone=tones.jsonl"],
    "eval-data": ["topic=rows.jsonl", "tone=tones.jsonl"],
    "template": [TEMPLATE, r"tone={text}{soft:4}\nTone: {label}"],
    "labels": ["topic=sports,business", "tone=good=won,bad=fell"],
    "method": ["multitask"],
    "model": ["model"],
    "steps": ["4"],
    "batch-size": ["4"],
}


def train_sources(out: str, *more: str, **options):
    """A `train` command for two tasks."""
    given = SOURCES | {name.replace("_", "-"): value for name, value in options.items()}
    pairs = [part for name, values in given.items() for value in values for part in (f"--{name}", value)]
    return run("train", "--quiet", *pairs, "--out", out, *more)


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


def test_a_method_of_worked_examples_is_set_by_its_settings(here):
    settings = ("--setting", "examples=3", "--setting", r"separator=\n---\n", "--setting", "example_length=5")
    template = r"Article: {text}\nTopic: {label}"
    trained = train("p", "--method", "context-aware", *settings, "--json", template=template)
    facts = json.loads(trained.stdout)["training"]
    saved = artifact.load(here / "p")
    assert (saved.method.examples, saved.method.separator, saved.method.example_length) == (3, "\n---\n", 5)
    assert len(facts["worked_rows"]) == 3
    assert saved.values.tokens == facts["worked_tokens"]
    assert "worked_rows" in (here / "p" / "README.md").read_text()
    looked_at = run("inspect", "p")
    assert "context-aware for model" in looked_at.stdout
    assert run("predict", "p", "--text", "the team won").exit_code == 0
    on = train("q", "--method", "context-aware", *settings, "--from", "p", template=template, seed=9)
    assert on.exit_code == 0
    assert artifact.load(here / "q").values.tokens == saved.values.tokens


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
    room = ["--max-new-tokens", "5"] if name == "titles" else []
    answers = run("predict", name, "--data", "texts.csv", "-q", "--batch-size", "2", *room)
    assert answers.exit_code == 0
    with open("texts.csv") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    lines = answers.stdout.removesuffix("\n").split("\n")
    assert len(lines) == len(texts) == 30
    assert len(answers.stdout.splitlines()) == 30
    as_json = run("predict", name, "--data", "texts.csv", "-q", *room, "--json").stdout.splitlines()
    answer = "text" if name == "titles" else "label"
    alone = {t: run("predict", name, "--text", t, *room, "--json").stdout for t in set(texts)}
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
    "setting out of range": ({"method": "context-aware", "setting": "gamma=2"}, "gamma is 2"),
    "more examples than rows": (
        {"method": "context-aware", "setting": "examples=9", "template": "{text}: {label}"},
        "9 worked examples are asked for, but there are 6 rows",
    ),
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
    told = "1 of 7 training rows were too long; their fields were shortened."
    assert told in train("p", data="long.jsonl").stdout
    assert told in train("seeds", "--seeds", "2", data="long.jsonl").stdout
    both = "1 of 7 training rows and 1 of 7 evaluation rows were too long"
    assert both in train("q", data="long.jsonl", eval_data="long.jsonl").stdout
    sources = train_sources(
        "s", data=["topic=rows.jsonl", "tone=tones.jsonl"], eval_data=["topic=long.jsonl", SOURCES["eval-data"][1]]
    )
    assert "topic: 1 of 7 evaluation rows were too long" in sources.stdout
    assert "tone:" not in sources.stdout


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


def test_prompts_of_several_tasks_are_trained_used_and_begun_from(here):
    trained = train_sources("s")
    assert trained.exit_code == 0, trained.output
    assert re.search(r"tone +│", trained.stdout)
    assert "Saved to s: prompts of 2 tasks, 4 virtual tokens each, 1,024 bytes in all." in trained.stdout
    saved = load_all("s")
    assert [m.task.template.source for m in saved.members.values()] == [FRONT, "{text}{soft:4}\nTone: {label}"]
    assert [m.task.words for m in saved.members.values()] == [("sports", "business"), ("won", "fell")]
    assert saved.training["distill"] == 0.9
    measured = run("eval", "s/tone", "--data", "tones.jsonl", "-q", "--json")
    assert json.loads(measured.stdout)["metrics"]["loss"] == pytest.approx(saved.members["tone"].metrics["loss"], 1e-5)
    assert run("predict", "s/tone", "--text", "the team won").stdout.partition(" ")[0] in ("good", "bad")
    assert "multitask for model, 512 bytes" in run("inspect", "s/topic").stdout
    looked_at = run("inspect", "s").stdout
    assert "2 multitask prompts for model, 1,024 bytes in all" in looked_at
    assert "softprompt inspect s/topic" in looked_at
    # The target: another task, from all of them or from one.
    for name, start in (("target", "s"), ("second", "s/tone")):
        target = train(name, "--method", "multitask", "--from", start, steps=2)
        assert target.exit_code == 0, target.output
    started = [artifact.load(here / name, training=True).state.start["embeddings"] for name in ("target", "second")]
    assert not torch.equal(*started)
    assert torch.equal(started[1], saved.members["tone"].values.embeddings)


def test_settings_of_several_tasks_are_taken(here):
    assert train("t", steps=1).exit_code == 0
    options = {"distill": ["0.3"], "teacher_steps": ["2"], "teacher_learning_rate": ["0.01"], "mixing_limit": ["7"]}
    made = train_sources("s", "--json", "--setting", "rank=2", teacher=["topic=t"], **options)
    assert made.exit_code == 0, made.output
    shown = json.loads(made.stdout)
    assert shown["kind"] == "sources"
    assert shown["prompts"].keys() == {"topic", "tone"}
    assert shown["prompts"]["tone"]["path"] == "s/tone"
    facts = shown["training"]
    assert (facts["distill"], facts["teacher_steps"], facts["teacher_learning_rate"]) == (0.3, 2, 0.01)
    assert facts["mixing_limit"] == 7
    assert list(facts["given_teachers"]) == ["topic"]
    assert load_all("s").first.method.settings()["rank"] == 2


def test_one_template_and_one_set_of_labels_may_be_for_all_tasks(here):
    answers = [{"text": row["text"], "label": "sports"} for row in TONE_ROWS]
    rows(here / "more.jsonl", answers)
    data = ["topic=rows.jsonl", "tone=more.jsonl"]
    made = train_sources("s", data=data, eval_data=[], template=[TEMPLATE], labels=["sports,business"], distill=["0"])
    assert made.exit_code == 0, made.output
    assert [m.task.labels for m in load_all("s").members.values()] == [tuple(LABELS)] * 2


def test_an_ensemble_is_trained_measured_used_and_looked_at(here):
    trained = train("e", "--seeds", "0,7", seed=3)
    assert trained.exit_code == 0, trained.output
    assert "Saved to e: an ensemble of 2 prompts, 4 virtual tokens each, 1,024 bytes in all." in trained.stdout
    assert list(load_all("e").members) == ["seed-0", "seed-7"]
    measured = run("eval", "ensemble", "--data", "rows.jsonl", "-q", "--json")
    metrics = json.loads(measured.stdout)["metrics"]
    assert metrics == pytest.approx(dict(load_all("ensemble").metrics) | {"rows_cut": 0}, rel=1e-5)
    assert {"accuracy", "mean_probability_accuracy", "member_accuracy", "seed-2.accuracy"} <= metrics.keys()
    assert "member_accuracy" in run("eval", "ensemble", "--data", "rows.jsonl", "-q").stdout
    for by in ("vote", "mean"):
        answers = run("predict", "ensemble", "--data", "rows.jsonl", "--by", by, "-q", "--json").stdout.splitlines()
        assert [json.loads(answer)["label"] in LABELS for answer in answers] == [True] * len(ROWS)
    member = run("predict", "ensemble/seed-1", "--text", "the team won", "--json")
    assert json.loads(member.stdout)["label"] in LABELS
    assert "an ensemble of 3 prompt-tuning prompts" in run("inspect", "ensemble").stdout
    shown = json.loads(run("inspect", "ensemble", "--json").stdout)
    assert list(shown["prompts"]) == ["seed-0", "seed-1", "seed-2"]
    assert "0" in run("inspect", "ensemble/seed-2").stdout
    assert list(load_all("writers").members) == ["seed-0", "seed-1"]
    assert run("predict", "writers/seed-0", "--text", "x", "--max-new-tokens", "2").exit_code == 0
    assert run("eval", "writers", "--data", "rows.jsonl", "-q").exit_code == 0


def test_an_interrupted_command_of_several_tasks_is_finished_by_resume(here, monkeypatch):
    assert train_sources("straight", steps=["12"]).exit_code == 0
    steps, compute_loss = [], LearnerTrainer.compute_loss

    def interrupt_at_31(self, *args, **kwargs):
        steps.append(self.state.global_step + 1)
        if len(steps) == 31:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(LearnerTrainer, "compute_loss", interrupt_at_31)
    stopped = train_sources("p", steps=["12"])
    assert stopped.exit_code == 130
    assert stopped.stderr == "softprompt: interrupted; the same command with --resume goes on with it\n"
    assert train_sources("p", "--resume", steps=["12"]).exit_code == 0
    assert steps[31:] == list(range(6, 13))
    for name in ("topic", "tone"):
        assert contents(here / "p" / name)[artifact.PROMPT] == contents(here / "straight" / name)[artifact.PROMPT]


BAD_SOURCES = {
    "one source": ({"data": ["topic=rows.jsonl"], "eval_data": []}, "sources: there is one source"),
    "a source without a name": (
        {"data": ["topic=rows.jsonl", "tones.jsonl"]},
        "--data: 'tones.jsonl' is no NAME=VALUE",
    ),
    "a source twice": ({"data": ["topic=rows.jsonl", "topic=tones.jsonl"]}, "--data: 'topic' stands twice"),
    "a name that is no folder": ({"data": ["a/b=rows.jsonl", "c=rows.jsonl"], "eval_data": [], "labels": []}, "'a/b' "),
    "no such file": ({"data": ["topic=rows.jsonl", "tone=nowhere.jsonl"]}, "nowhere.jsonl: there is no such file"),
    "a template for none": ({"template": [r"tone={text}{soft:4}: {label}"]}, "--template: there is none for topic"),
    "two templates for all": ({"template": ["{text}{label}", "{text}: {label}"]}, "--template: two values are for all"),
    "a template twice": ({"template": [TEMPLATE, "tone={text}{label}", "tone={text}: {label}"]}, "'tone' stands twice"),
    "rows of no source": (
        {"eval_data": ["topic=rows.jsonl", "mood=tones.jsonl"]},
        "--eval-data: there is no --data mood",
    ),
    "rows of some": ({"eval_data": ["topic=rows.jsonl"]}, "source tone: it has no rows to measure on"),
    "rows without a name": ({"eval_data": ["rows.jsonl"]}, "--eval-data: 'rows.jsonl' is no NAME=VALUE"),
    "a teacher of none": ({"teacher": ["mood=topic"]}, "--teacher: there is no --data mood"),
    "no such teacher": ({"teacher": ["topic=nowhere"]}, "nowhere: there is no such folder"),
    "a teacher of another task": ({"teacher": ["tone=topic"]}, "the teacher of tone: its task has labels"),
    "another method": ({"method": ["prompt-tuning"]}, "method: prompt-tuning prompts have nothing in common"),
    "too small a batch": ({"batch_size": ["1"]}, "batch_size is 1"),
    "a start": ({"from": ["sources"]}, "--from: it is for one task"),
    "seeds": ({"seeds": ["3"]}, "--seeds: it is for one task"),
    "distill": ({"distill": ["-1"]}, "distill is -1"),
    "lengths": ({"template": [TEMPLATE, "tone={soft:5}{text}: {label}"]}, "source tone: its slots have 5"),
    "prompts stand there": ({"out": ["sources"]}, "sources: prompts stand there.*--overwrite"),
}


@pytest.mark.parametrize(("options", "message"), BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_several_tasks_that_cannot_be_trained_are_refused_in_one_line(here, options, message):
    before = contents(here)
    options = dict(options)
    (out,) = options.pop("out", ["s"])
    assert_refused(train_sources(out, **options), message)
    assert contents(here) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "seeds is 1"),
        (["--seeds", "many"], "--seeds: 'many' is no number"),
        (["--seeds", "1,1"], "a seed stands twice"),
        (["--seeds", "3", "--from", "topic"], "--from: an ensemble's prompts begin from seeds"),
        (["--seeds", "3", "--method", "hard-prompt"], "every seed gives the same"),
        (["--distill", "0.5"], "--distill: it is for several tasks"),
        (["--teacher", "topic=topic"], "--teacher: it is for several tasks"),
        (["--labels", "a,b"], "--labels: it is given 2 times for one task"),
        (["--template", "{text}{label}"], "--template: it is given 2 times for one task"),
        (["--eval-data", "rows.jsonl"], "--eval-data: it is given 2 times for one task"),
        (["--method", "multitask", "--from", "ensemble"], "ensemble: it is a prompt-tuning prompt, not multitask"),
        (["--method", "multitask", "--from", "sources", "--setting", "rank=3"], "sources: its rank is 1, that asked"),
        (["--from", "ensemble"], "ensemble: it takes one prompt, not 3"),
        (["--method", "multitask", "--setting", "factor_rate=0"], "factor_rate is 0"),
    ],
)
def test_several_seeds_that_cannot_be_trained_are_refused_in_one_line(here, arguments, message):
    before = contents(here)
    assert_refused(train("p", *arguments), message)
    assert contents(here) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["eval", "sources", "--data", "rows.jsonl"],
            "sources: it holds the prompts of 2 tasks. Give one: sources/topic",
        ),
        (["predict", "sources", "--text", "x"], "sources: it holds the prompts of 2 tasks"),
        (["predict", "writers", "--text", "x"], "writers: it is an ensemble of 2 prompts.*such as seed-0"),
        (["predict", "ensemble", "--text", "x", "--by", "dice"], "by is 'dice'"),
        (["predict", "topic", "--text", "x", "--by", "vote"], "by: by is 'vote', but that is how an ensemble"),
        (["inspect", "ensemble", "--plot", "x.png"], "--plot: a picture shows one prompt.*ensemble/seed-0"),
        (["eval", "ensemble", "--data", "rows.jsonl", "--model", "other"], "ensemble|prompt/seed-0: .*fingerprint"),
    ],
)
def test_what_several_prompts_cannot_do_is_refused_in_one_line(here, arguments, message):
    assert_refused(run(*arguments), message)


def test_a_file_with_an_equals_sign_in_its_name_is_a_file(here):
    rows(here / "topic=1.jsonl", ROWS)
    assert train("p", data="topic=1.jsonl").exit_code == 0
