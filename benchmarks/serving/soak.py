"""Many requests, some of them malformed: what they are answered, and what becomes of the server's memory.

    python -m benchmarks.serving.soak [--requests 10000] [--clients 24]

SmolLM2-135M, float32, 8 prompts, `softprompt serve` as a process of its own. One request in fifty is malformed: no
JSON, an unknown model, a huge body, wrong types, no UTF-8, or a client that goes away at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import httpx
from tqdm import tqdm
from transformers.utils import logging

from benchmarks.serving.__main__ import TASKS, saved, texts
from benchmarks.speed.workbench import Workbench
from softprompt import artifact

EVERY = 50
MALFORMED = ("no JSON", "unknown model", "huge body", "wrong types", "no UTF-8", "gone at once")


def resident(process: int) -> float:
    """Megabytes."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def bodies(number: int, chance: random.Random, some: list[str]) -> tuple[str, bytes]:
    """What is sent, and which way it is malformed; "" where it is not."""
    asked = {
        "model": f"task-{chance.randrange(TASKS)}",
        "prompt": chance.choice(some),
        "max_tokens": chance.randint(1, 4),
    }
    if number % EVERY:
        return "", json.dumps(asked).encode()
    kind = MALFORMED[number // EVERY % len(MALFORMED)]
    return kind, {
        "no JSON": b'{"model": ',
        "unknown model": json.dumps(asked | {"model": "nobody"}).encode(),
        "huge body": b"x" * 2_000_000,
        "wrong types": json.dumps(asked | {"prompt": {"a": [1]}, "max_tokens": "many"}).encode(),
        "no UTF-8": b'{"model": "task-0", "prompt": "\xff\xfe"}',
        "gone at once": json.dumps(asked | {"max_tokens": 200}).encode(),
    }[kind]


async def soaked(url: str, process: int, requests: int, clients: int, some: list[str]) -> None:
    chance, statuses, waiting = random.Random(0), Counter[tuple[str, int]](), list(range(requests))
    memory: list[tuple[int, float]] = []
    with tqdm(total=requests, unit="request") as bar:

        async def client(http: httpx.AsyncClient) -> None:
            while waiting:
                kind, body = bodies(waiting.pop(), chance, some)
                headers = {"content-type": "application/json"}
                try:
                    timeout = 0.02 if kind == "gone at once" else 600
                    found = await http.post("/v1/completions", content=body, headers=headers, timeout=timeout)
                    status = found.status_code
                    if status >= 400:
                        assert set(found.json()) == {"error"}
                except httpx.TimeoutException:
                    status = 0
                statuses[kind, status] += 1
                bar.update()
                if bar.n % (requests // 10) == 0:
                    memory.append((bar.n, resident(process)))

        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=clients)) as http:
            await asyncio.gather(*(client(http) for _ in range(clients)))
            health = (await http.get("/health")).json()
    for (kind, status), count in sorted(statuses.items()):
        print(f"{kind or 'well-formed':<14} {status or 'gone':>5} {count:>6}")
    print("resident megabytes:", ", ".join(f"{size:.0f} after {done}" for done, size in memory))
    print("at the end:", health)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=24)
    given = parser.parse_args()
    logging.set_verbosity_error()
    bench = Workbench("float32")
    some = texts(bench, 200)
    with tempfile.TemporaryDirectory() as folder:
        names = [f"task-{number}" for number in range(TASKS)]
        for number, name in enumerate(names):
            artifact.save(saved(bench, number), Path(folder) / name)
        del bench
        command = [sys.executable, "-m", "softprompt", "serve", *(f"{n}={folder}/{n}" for n in names), "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            said = next(line for line in map(json.loads, server.stderr) if line["event"] == "listening")
            # What it logs from now on is read, or it would wait for somebody who reads.
            reader = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
            try:
                url = f"http://{said['host']}:{said['port']}"
                asyncio.run(soaked(url, server.pid, given.requests, given.clients, some))
            finally:
                server.terminate()
                print("exit status:", server.wait())
                reader.wait()


if __name__ == "__main__":
    main()
