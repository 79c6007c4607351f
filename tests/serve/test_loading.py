"""Prompts come and go over HTTP while others are asked."""

from __future__ import annotations

import threading

import pytest

import reference
from softprompt import artifact
from toys import TOPICS, contents, prompt


@pytest.fixture
def folder(tmp_path):
    artifact.save(prompt(reference.backbone("llama"), TOPICS, seed=8), tmp_path / "p")
    return tmp_path / "p"


WAYS = [
    ("/v1/load_prompt", "/v1/unload_prompt", "prompt_name", "prompt_path"),
    ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "lora_name", "lora_path"),
]


@pytest.mark.parametrize(("load", "unload", "name", "path"), WAYS)
def test_a_prompt_is_loaded_asked_and_unloaded(serve, folder, load, unload, name, path):
    running = serve(loading=True)
    asked = {"model": "new", "input": "x"}
    with running.http() as http:
        assert http.post("/v1/classify", json=asked).status_code == 404
        assert http.post(load, json={name: "new", path: str(folder)}).status_code == 200
        assert http.post("/v1/classify", json=asked).status_code == 200
        (card,) = [c for c in http.get("/v1/models").json()["data"] if c["id"] == "new"]
        assert (card["root"], card["parent"]) == (str(folder), "tiny-llama")
        twice = http.post(load, json={name: "new", path: str(folder)})
        assert (twice.status_code, "already" in twice.text) == (400, True)
        assert http.post(load, json={name: "new", path: str(folder), "load_inplace": True}).status_code == 200
        assert http.post(unload, json={name: "new"}).status_code == 200
        assert http.post("/v1/classify", json=asked).status_code == 404
        assert http.post(unload, json={name: "new"}).status_code == 404


def test_what_cannot_be_loaded_leaves_all_as_it_was(serve, folder):
    running = serve(loading=True)
    (folder / "prompt.safetensors").write_bytes(b"damaged")
    before = contents(folder)
    with running.http() as http:
        for name, path, status in (
            ("topics", str(folder), 400),
            ("new", str(folder), 400),
            ("new", str(folder / "nowhere"), 404),
            ("tiny-llama", str(folder), 400),
            ("new", "\x00", 400),
        ):
            found = http.post("/v1/load_prompt", json={"prompt_name": name, "prompt_path": path, "load_inplace": True})
            assert (found.status_code, set(found.json())) == (status, {"error"}), found.text
        assert http.post("/v1/classify", json={"model": "topics", "input": "x"}).status_code == 200
    assert contents(folder) == before


def test_loading_drops_no_request(serve, folder):
    running = serve(loading=True, rows=4)
    stop, statuses = threading.Event(), []

    def ask() -> None:
        with running.http() as http:
            while not stop.is_set():
                found = http.post("/v1/completions", json={"model": "writing", "prompt": "x", "max_tokens": 3})
                statuses.append(found.status_code)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    with running.http() as http:
        for _ in range(15):
            for route in ("/v1/load_prompt", "/v1/unload_prompt"):
                more = {"prompt_path": str(folder)} if "unload" not in route else {}
                assert http.post(route, json={"prompt_name": "new", **more}).status_code == 200
    stop.set()
    for caller in callers:
        caller.join()
    assert len(statuses) > 20
    assert set(statuses) == {200}
