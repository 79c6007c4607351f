"""What is counted and logged of requests."""

from __future__ import annotations

import io
import json
import logging

import pytest

from softprompt.serve.logs import JsonFormatter


@pytest.fixture
def log():
    """What the server logs, as it would be written."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("softprompt.serve")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_requests_are_counted_by_prompt(serve):
    running = serve()
    with running.http() as http:
        for _ in range(3):
            http.post("/v1/completions", json={"model": "writing", "prompt": "x", "max_tokens": 4, "temperature": 0})
        http.post("/v1/completions", json={"model": "writing", "prompt": "x", "max_tokens": 4, "stream": True})
        http.post("/v1/classify", json={"model": "topics", "input": ["x", "y"]})
        http.post("/v1/classify", json={"model": "nobody", "input": "x"})
        http.get("/nowhere/at/all")
        text = http.get("/metrics").text
    numbers = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }
    counted = 'softprompt_requests_total{prompt="%s",route="%s",status="%s"}'
    assert numbers[counted % ("writing", "/v1/completions", 200)] == 4
    assert numbers[counted % ("topics", "/v1/classify", 200)] == 1
    # A name that is no prompt's is not counted under it: anyone could fill the memory with names.
    assert numbers[counted % ("", "/v1/classify", 404)] == 1
    assert numbers[counted % ("", "", 404)] == 1
    assert "nobody" not in text
    assert numbers['softprompt_generated_tokens_total{prompt="writing"}'] == 16
    assert numbers['softprompt_request_seconds_count{prompt="writing",route="/v1/completions"}'] == 4
    assert numbers['softprompt_first_token_seconds_count{prompt="writing",route="/v1/completions"}'] == 1
    assert numbers['softprompt_pass_rows_count{kind="begin"}'] == 4
    assert numbers['softprompt_pass_rows_sum{kind="answer"}'] == 2
    assert numbers["softprompt_prompts"] == len(running.desk.service.library.folders)
    assert numbers["softprompt_prompts_bytes"] > 0


def test_a_request_is_a_line_of_the_log_without_its_text(serve, log):
    running = serve()
    with running.http() as http:
        found = http.post("/v1/completions", json={"model": "writing", "prompt": "the secret won", "max_tokens": 2})
        http.post("/v1/completions", json={"model": "secret", "prompt": "secret"})
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    first, second = (line for line in lines if line["event"] == "request")
    assert first["id"] == found.json()["id"] == found.headers["x-request-id"]
    assert (first["route"], first["model"], first["status"]) == ("/v1/completions", "writing", 200)
    assert first["completion_tokens"] == 2
    assert first["seconds"] > 0
    assert second["status"] == 404
    assert "secret" not in log.getvalue()


def test_what_was_not_foreseen_is_told_without_details_and_logged_without_text(serve, log, monkeypatch):
    running = serve()

    def fails(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(running.desk, "entry", fails)
    with running.http() as http:
        found = http.post("/v1/completions", json={"model": "writing", "prompt": "x"})
    assert found.status_code == 500
    assert found.json()["error"]["type"] == "server_error"
    assert "secret" not in found.text + log.getvalue()
    (line,) = [json.loads(line) for line in log.getvalue().splitlines() if '"unforeseen"' in line]
    assert line["error"] == "ZeroDivisionError"
    assert any(place.startswith(__file__) for place in line["trace"])
