"""Whatever is sent, the answer is OpenAI's envelope with a status of 4xx, and the next request is answered."""

from __future__ import annotations

import json
import socket

import pytest

from servers import Running

WRITE = {"model": "writing", "prompt": "x", "max_tokens": 2}
CHAT = {"model": "writing", "messages": [{"role": "user", "content": "x"}]}


def without(asked: dict, name: str) -> dict:
    return {key: value for key, value in asked.items() if key != name}


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("/v1/completions", WRITE | {"model": "nobody"}, 404, "no prompt called 'nobody'"),
        ("/v1/completions", without(WRITE, "model"), 400, "model: Field required"),
        ("/v1/completions", without(WRITE, "prompt"), 400, "prompt or fields"),
        ("/v1/completions", WRITE | {"prompt": 7}, 400, "prompt"),
        ("/v1/completions", WRITE | {"prompt": [[1, 2]]}, 400, "prompt"),
        ("/v1/completions", WRITE | {"prompt": []}, 400, "prompt"),
        ("/v1/completions", WRITE | {"prompt": "\ud800"}, 400, "half of a character"),
        ("/v1/completions", WRITE | {"max_tokens": 0}, 400, "max_tokens"),
        ("/v1/completions", WRITE | {"max_tokens": 10**9}, 400, "most of this server"),
        ("/v1/completions", WRITE | {"max_tokens": 1000}, 400, "positions|allowed"),
        ("/v1/completions", WRITE | {"max_tokens": "2"}, 400, "max_tokens"),
        ("/v1/completions", WRITE | {"temperature": -1}, 400, "temperature"),
        ("/v1/completions", WRITE | {"temperature": float("nan")}, 400, "temperature"),
        ("/v1/completions", WRITE | {"top_p": 0}, 400, "top_p"),
        ("/v1/completions", WRITE | {"n": 9}, 400, "n"),
        ("/v1/completions", WRITE | {"stop": [""]}, 400, "stop"),
        ("/v1/completions", WRITE | {"temprature": 0}, 400, "temprature"),
        ("/v1/completions", WRITE | {"echo": True}, 400, "echo"),
        ("/v1/completions", WRITE | {"fields": {"text": "x"}}, 400, "prompt or fields"),
        ("/v1/completions", WRITE | {"prompt": ["x", "y"], "stream": True}, 400, "not streamed"),
        ("/v1/completions", WRITE | {"model": "topics", "n": 2}, 400, "chooses among its labels"),
        ("/v1/completions", WRITE | {"model": "feature-extraction"}, 400, "writes nothing"),
        ("/v1/completions", WRITE | {"model": "tiny-llama", "prompt": ""}, 400, "no token"),
        ("/v1/chat/completions", CHAT | {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", CHAT | {"messages": CHAT["messages"] * 2}, 400, "one message of a user"),
        ("/v1/chat/completions", CHAT | {"model": "tiny-llama"}, 400, "no chat template"),
        ("/v1/chat/completions", CHAT | {"model": "pair"}, 400, "fields question, text"),
        ("/v1/chat/completions", CHAT | {"tools": []}, 400, "tools"),
        ("/v1/chat/completions", CHAT | {"top_logprobs": 2}, 400, "logprobs"),
        ("/v1/classify", {"model": "topics", "input": {}}, 400, "text"),
        ("/v1/classify", {"model": "topics", "input": {"txt": "x"}}, 400, "text"),
        ("/v1/classify", {"model": "writing", "input": "x"}, 400, "generates"),
        ("/v1/classify", {"model": "tiny-llama", "input": "x"}, 400, "no labels"),
        ("/v1/classify", {"model": ["topics", "nobody"], "input": "x"}, 404, "nobody"),
        ("/v1/classify", {"model": "topics", "input": "x", "by": "mean"}, 400, "by|ensemble"),
        ("/v1/classify", {"model": "topics", "input": ["x"] * 3000}, 400, "input"),
        ("/v1/classify", {"model": "topics", "input": "x" * 300_000}, 400, "characters"),
        ("/v1/classify", {"model": "feature-extraction", "input": "x"}, 400, "embeddings"),
        ("/v1/embeddings", {"model": "topics", "input": "x"}, 400, "no vectors"),
        ("/v1/load_prompt", {"prompt_name": "x", "prompt_path": "/nowhere"}, 404, "Not Found"),
        ("/v1/nothing", {}, 404, "Not Found"),
        ("/v1/models", {}, 405, "Method Not Allowed"),
    ],
)
def test_a_request_that_cannot_be_met(served: Running, route: str, body: dict, status: int, message: str):
    with served.http() as http:
        found = http.post(route, content=json.dumps(body), headers={"content-type": "application/json"})
        assert_refused(found, status, message)
        assert http.post("/v1/completions", json=WRITE).status_code == 200


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe\xfa", b"[" * 200_000, b'{"model":"writing","prompt":"\xff"}'],
)
def test_a_body_that_is_no_request(served: Running, content: bytes):
    with served.http() as http:
        found = http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        assert_refused(found, 400, ".")
        as_form = http.post("/v1/completions", data={"model": "writing"})
        assert_refused(as_form, 400, "Content-Type")
        assert http.post("/v1/completions", json=WRITE).status_code == 200


def assert_refused(found, status: int, message: str) -> None:
    import re

    assert found.status_code == status, found.text
    assert set(found.json()) == {"error"}
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(message, error["message"]), error


def test_what_is_not_even_http(served: Running):
    host, port = served.url.removeprefix("http://").split(":")
    for sent in (
        b"\x00\x01\x02\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
        b"GET " * 9,
    ):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(sent)
    with served.http() as http:
        assert http.post("/v1/completions", json=WRITE).status_code == 200
