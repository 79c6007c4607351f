"""`softprompt serve`, as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

import tiny
from commands import assert_refused, run
from softprompt import artifact
from softprompt.backbone.backbone import Backbone
from toys import TOPICS, WRITING, prompt


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a model and prompts."""
    home = tmp_path_factory.mktemp("home")
    tiny.model("llama").save_pretrained(home / "model")
    tiny.tokenizer().save_pretrained(home / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        backbone = Backbone.load("model")
        artifact.save(prompt(backbone, TOPICS), "topics")
        artifact.save(prompt(backbone, WRITING), "titles")
    return home


@dataclass
class Process:
    popen: subprocess.Popen[str]
    url: str = ""
    lines: list[dict] = field(default_factory=list)

    def read(self, until: str) -> dict:
        """The log, up to an event."""
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == until:
                return self.lines[-1]
        raise AssertionError(f"no {until}: {self.lines}")

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        rest = threading.Thread(target=self.popen.communicate)
        rest.start()
        code = self.popen.wait(60)
        rest.join()
        return code


@contextmanager
def serving(home: Path, *arguments: str, **environment: str) -> Iterator[Process]:
    command = [sys.executable, "-m", "softprompt", "serve", *arguments]
    popen = subprocess.Popen(
        command, cwd=home, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
    )
    process = Process(popen)
    try:
        listening = process.read("listening")
        process.url = f"http://{listening['host']}:{listening['port']}"
        yield process
    finally:
        popen.kill()
        popen.wait()


def test_it_serves_until_it_is_told_to_stop_and_finishes_what_runs(home):
    with serving(home, "topics=topics", "titles=titles", "--port", "0") as process, httpx.Client(timeout=60) as http:
        assert process.lines[-1]["host"] == "127.0.0.1"
        assert process.lines[-1]["prompts"] == 2
        asked = {"model": "titles", "prompt": "x", "max_tokens": 100, "stream": True, "logprobs": 0}
        with http.stream("POST", f"{process.url}/v1/completions", json=asked) as found:
            lines = found.iter_lines()
            assert next(lines).startswith("data: {")
            stopping = threading.Thread(target=process.stop)
            stopping.start()
            rest = [line for line in lines if line]
        stopping.join()
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("length", "stop")
        assert process.popen.returncode == 0


def test_flags_go_before_the_environment_and_that_before_the_file(home, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    (tmp_path / "serve.toml").write_text(
        f'port = 1\nrows = 3\nqueue = 5\napi-key-file = "{tmp_path}/keys"\n[prompts]\ntopics = "topics"\n'
    )
    environment = {"SOFTPROMPT_ROWS": "4", "SOFTPROMPT_PORT": "2"}
    with serving(home, "--config", str(tmp_path / "serve.toml"), "--port", "0", **environment) as process:
        assert httpx.get(f"{process.url}/v1/models").status_code == 401
        keyed = httpx.get(f"{process.url}/v1/models", headers={"authorization": "Bearer secret"}).json()
        assert [card["id"] for card in keyed["data"]] == ["model", "topics"]
        said = process.lines[-1]
        assert (said["rows"], said["queue"]) == (4, 5)
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to serve"),
        (["topics"], "no NAME=DIR"),
        (["a=topics", "a=titles"], "twice"),
        (["a=nowhere"], "nowhere: there is no such folder"),
        (["model=topics"], "the model itself is called 'model'"),
        (["a=topics", "--rows", "0"], "rows"),
        (["a=topics", "--port", "70000"], "70000 is no port"),
        (["a=topics", "--api-key-file", "nowhere"], "nowhere: it cannot be read"),
        (["a=topics", "--log-level", "loud"], "loud"),
        (["a=topics", "--host", "256.1.1.1"], "cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(home, monkeypatch, arguments, message):
    monkeypatch.chdir(home)
    assert_refused(run("serve", *arguments), message, status=1 if "--host" in arguments else 2)


@pytest.mark.parametrize("content", ["port = ", "prot = 1\n"])
def test_a_file_of_options_that_cannot_be_read(home, tmp_path, content):
    (tmp_path / "serve.toml").write_text(content)
    found = run("serve", "--config", tmp_path / "serve.toml")
    assert found.exit_code == 2
    # Set in a frame, its lines broken wherever they end.
    assert "serve.toml" in re.sub(r"[│\s]", "", found.stderr)
