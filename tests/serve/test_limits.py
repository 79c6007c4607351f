from __future__ import annotations

import threading
import time

import httpx
import openai
import pytest

from softprompt.errors import SettingsError
from softprompt.serve.settings import ServeSettings, read_keys

LONG = {"model": "hard", "prompt": "x", "max_tokens": 100, "temperature": 0, "logprobs": 0}


def busy(running) -> threading.Event:
    """Hold up the service's thread until the event is set."""
    go = threading.Event()
    running.desk.service._errands.append(lambda: go.wait(30))
    running.desk.service.remove("long")  # wakes it
    return go


def test_without_a_key_nothing_is_told(serve):
    running = serve(keys=("first", "second"))
    with running.http() as http:
        for headers in (
            {},
            {"authorization": "Bearer third"},
            {"authorization": "first"},
            {"authorization": "Basic first"},
        ):
            for route in ("/v1/models", "/v1/completions", "/metrics"):
                found = http.get(route, headers=headers)
                assert found.status_code == 401
                assert found.json()["error"]["type"] == "authentication_error"
        assert http.get("/health").status_code == 200
    assert [card.id for card in running.openai("second").models.list()]
    with pytest.raises(openai.AuthenticationError):
        running.openai("third").models.list()


def test_large_bodies_are_turned_away_whether_they_say_so_or_not(serve):
    running = serve(max_body=1000)
    with running.http() as http:
        told = http.post("/v1/completions", content=b"x" * 2000)
        untold = http.post("/v1/completions", content=iter([b'{"prompt":"', b"x" * 600, b"x" * 600]))
        for found in (told, untold):
            assert found.status_code == 413
            assert "above 1000 bytes" in found.json()["error"]["message"]
        assert http.post("/v1/classify", json={"model": "topics", "input": "x"}).status_code == 200


def test_when_too_many_wait_the_next_is_told_when_to_come_again(serve):
    running = serve(rows=1, queue=2)
    go = busy(running)
    codes: list[int] = []

    def call() -> None:
        with running.http() as http:
            codes.append(http.post("/v1/classify", json={"model": "topics", "input": "x"}).status_code)

    waiting = [threading.Thread(target=call) for _ in range(2)]
    for one in waiting:
        one.start()
    while running.desk.service.waiting < 2:
        time.sleep(0.01)
    with running.http() as http:
        found = http.post("/v1/classify", json={"model": "topics", "input": "x"})
    assert (found.status_code, found.headers["retry-after"]) == (429, "1")
    go.set()
    for one in waiting:
        one.join()
    assert codes == [200, 200]


def test_a_request_has_its_time(serve):
    running = serve(timeout=0.2)
    go = busy(running)
    with running.http() as http:
        found = http.post("/v1/completions", json=LONG)
        assert found.status_code == 504
        streamed = http.post("/v1/completions", json=LONG | {"stream": True})
        assert "within 0.2 seconds" in streamed.text
        assert streamed.text.endswith("data: [DONE]\n\n")
    go.set()
    while running.desk.service.waiting or running.desk.service.writing:
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_frees_the_place(serve, stream: bool):
    running = serve(rows=1)
    go = busy(running)
    with running.http() as http, pytest.raises(httpx.TimeoutException):
        http.post("/v1/completions", json=LONG | {"stream": stream}, timeout=0.3)
    time.sleep(0.1)
    go.set()
    with running.http() as http:
        assert http.post("/v1/classify", json={"model": "topics", "input": "x"}).status_code == 200
        assert http.get("/health").json()["writing"] == 0
        counted = http.get("/metrics").text
    assert 'softprompt_generated_tokens_total{prompt="hard"}' not in counted or stream
    assert "softprompt_pass_rows_count" in counted


def test_keys_are_read_from_a_file(tmp_path):
    (tmp_path / "keys").write_text("# ours\nfirst\n\n second \n")
    assert read_keys(tmp_path / "keys") == ("first", "second")
    (tmp_path / "keys").write_text("# none\n")
    for path in ("keys", "nowhere"):
        with pytest.raises(SettingsError, match="key"):
            read_keys(tmp_path / path)


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"rows": 0}, {"timeout": 0.0}, {"drain": float("nan")}, {"queue": -1}]
)
def test_settings_out_of_range(wrong):
    with pytest.raises(SettingsError) as refused:
        ServeSettings(**wrong)
    assert refused.value.where in wrong


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_where_it_can_be_reached_from(host, local):
    assert ServeSettings(host=host).local is local
