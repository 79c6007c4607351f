"""Clients that each ask one request after the other; what they measured, as JSON.

    python -m benchmarks.serving.load URL FILE CLIENTS

FILE holds the bodies of the requests, one a line; clients take them in order. A process of its own, so that clients and
server do not share an interpreter.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import httpx


async def client(http: httpx.AsyncClient, bodies: list[bytes], answers: list[dict]) -> None:
    while bodies:
        body = bodies.pop()
        began = time.perf_counter()
        found = await http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
        seconds = time.perf_counter() - began
        asked = json.loads(body)
        text = found.json()["choices"][0]["text"] if found.status_code == 200 else None
        answers.append({"model": asked["model"], "prompt": asked["prompt"], "seconds": seconds, "text": text})


async def measured(url: str, bodies: list[bytes], clients: int) -> dict:
    answers: list[dict] = []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http, bodies, answers) for _ in range(clients)))
        return {"seconds": time.perf_counter() - began, "answers": answers}


if __name__ == "__main__":
    address, path, number = sys.argv[1:]
    lines = Path(path).read_bytes().splitlines()
    print(json.dumps(asyncio.run(measured(address, lines[::-1], int(number)))))
