"""How many answers a second, and how long each takes: many clients, one client, and PEFT behind the same route.

    python -m benchmarks.serving [--clients 32] [--requests 128] [--json FILE] [--write]

SmolLM2-135M, float32. 8 prompts of 20 virtual tokens in front of texts of about 24 tokens; 16 tokens are written
greedily. Each server answers the same requests of clients in a process of their own. Ours are first held against what
each request is answered alone. `--write` puts the table into docs/serving.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from tqdm import tqdm
from transformers.utils import logging

from benchmarks.serving import peer
from benchmarks.speed import report
from benchmarks.speed.workbench import Workbench
from softprompt import Engine, PromptTuning, Task
from softprompt.demo.news import news
from softprompt.prompts.prompt import VirtualTokens
from softprompt.saved import SavedPrompt
from softprompt.serve import server
from softprompt.serve.app import create_app
from softprompt.serve.settings import ServeSettings

TASKS, TOKENS, LENGTH, NEW = 8, 20, 24, 16
RESULTS = Path(__file__).parents[1] / "results" / "serving.json"
DOCUMENT = report.ROOT / "docs" / "serving.md"
BEGIN, END = "<!-- serving: written by `python -m benchmarks.serving --write` -->\n", "<!-- /serving -->"


@contextmanager
def listening(app: FastAPI, settings: ServeSettings) -> Iterator[str]:
    listener = server.listen(settings)
    running = uvicorn.Server(server.config(app, settings))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join()


def asked(url: str, requests: Sequence[dict[str, Any]], clients: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("".join(json.dumps(request) + "\n" for request in requests))
        file.flush()
        command = [sys.executable, "-m", "benchmarks.serving.load", url, file.name, str(clients)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def saved(bench: Workbench, number: int) -> SavedPrompt:
    backbone = bench.backbone
    return SavedPrompt(
        method=PromptTuning(tokens=TOKENS),
        task=Task(f"{{soft:{TOKENS}}}{{text}}{{label}}"),
        values=VirtualTokens(bench.start(TOKENS)),
        backbone_name=backbone.name,
        backbone_fingerprint=backbone.fingerprint,
        tokenizer_fingerprint=backbone.tokenizer_fingerprint,
        dtype="float32",
    )


def texts(bench: Workbench, count: int) -> list[str]:
    tokenizer = bench.backbone.tokenizer
    articles = news(0, learn=-(-count // 5), choose=0, test=0).learn[:count]
    ids = [tokenizer(article.row["text"])["input_ids"][:LENGTH] for article in articles]
    return [tokenizer.decode(own) for own in ids]


def measured(clients: int, requests: int) -> dict[str, Any]:
    bench = Workbench("float32")
    prompts = {f"task-{number}": saved(bench, number) for number in range(TASKS)}
    bodies = [
        {"model": f"task-{i % TASKS}", "prompt": text, "max_tokens": NEW, "temperature": 0}
        for i, text in enumerate(texts(bench, requests))
    ]
    alone = Engine(bench.backbone)
    for name, prompt in prompts.items():
        alone.add(name, prompt)
    wanted = {
        (body["model"], body["prompt"]): alone.generate([(body["model"], {"text": body["prompt"]})], max_new_tokens=NEW)
        for body in tqdm(bodies, desc="Alone", unit="request")
    }
    starts = [prompt.values.embeddings for prompt in prompts.values() if isinstance(prompt.values, VirtualTokens)]
    rows = []
    for name, at_once, written, count in (
        (f"softprompt, {clients} clients", clients, clients, requests),
        (f"softprompt, {clients // 2} clients", clients // 2, clients, requests),
        (f"softprompt one request at a time, {clients} clients", clients, 1, requests // 2),
        (f"PEFT, {clients} clients", clients, None, requests // 2),
    ):
        settings = ServeSettings(port=0, rows=written or 1, queue=10_000)
        if written is None:
            app = peer.app(bench, starts)
        else:
            desk = server.desk_for(bench.backbone, {}, settings)
            for prompt_name, prompt in prompts.items():
                desk.service.add(prompt_name, prompt)
            app = create_app(desk)
        with listening(app, settings) as url:
            asked(url, bodies[:TASKS], TASKS)
            found = asked(url, bodies[:count], at_once)
        if written is not None:
            for answer in found["answers"]:
                (right,) = wanted[answer["model"], answer["prompt"]]
                assert answer["text"] == right.text, "another answer than alone"
        seconds = sorted(answer["seconds"] for answer in found["answers"])
        quantiles = statistics.quantiles(seconds, n=20)
        row = {
            "server": name,
            "requests": count,
            "requests a second": count / found["seconds"],
            "p50": statistics.median(seconds),
            "p95": quantiles[-1],
        }
        print(row)
        rows.append(row)
    return {"machine": report.machine(), "rows": rows}


def table(found: dict[str, Any]) -> list[str]:
    first = found["rows"][0]["requests a second"]
    lines = [
        report.described(found["machine"]),
        "",
        "| server | requests a second | p50 | p95 | the first is |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        ratio = f"{first / row['requests a second']:.1f}x" if row is not found["rows"][0] else ""
        lines.append(
            f"| {row['server']} | {row['requests a second']:.2f} | {row['p50']:.2f} s | {row['p95']:.2f} s | {ratio} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="put the table into docs/serving.md")
    given = parser.parse_args()
    logging.set_verbosity_error()
    found = measured(given.clients, given.requests)
    given.json.write_text(json.dumps(found, indent=2) + "\n")
    if given.write:
        report.put(DOCUMENT, BEGIN, END, table(found))


if __name__ == "__main__":
    main()
