"""Servers that listen on this machine, as clients meet them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import httpx
import openai
import uvicorn

import reference
from softprompt.collection import SavedPrompts
from softprompt.prompts import HardPrompt, PrefixTuning
from softprompt.saved import SavedPrompt
from softprompt.serve import server
from softprompt.serve.app import create_app
from softprompt.serve.desk import Desk
from softprompt.serve.settings import ServeSettings
from softprompt.text.task import Task
from toys import BEHIND, TONES, TOPICS, WRITING, prompt, task_of


@cache
def prompts() -> dict[str, SavedPrompt | SavedPrompts]:
    """Of different methods, templates and kinds of task, none of them trained."""
    backbone = reference.backbone("llama")
    prefix = replace(
        prompt(backbone, Task("{soft:3}Article: {text}\nTopic: {label}")),
        values=reference.random_prefix(backbone),
        method=PrefixTuning(tokens=3),
    )
    found: dict[str, SavedPrompt | SavedPrompts] = {
        "topics": prompt(backbone, TOPICS, seed=1),
        "tones": prompt(backbone, TONES, seed=2),
        "writing": prompt(backbone, WRITING, seed=3),
        "behind": prompt(backbone, Task(BEHIND), seed=4),
        "long": prompt(backbone, Task("{soft:2}Is {text}{soft:9} right? {label}"), seed=5),
        "prefix": prefix,
        "hard": prompt(backbone, Task("Article: {text}\nTopic: {label}"), method=HardPrompt()),
        "pair": prompt(backbone, Task("{question}{soft:3} {text} {label}"), seed=6),
        "voting": SavedPrompts("ensemble", {f"seed-{s}": prompt(backbone, TOPICS, seed=s) for s in range(3)}),
    }
    kinds = ("multi-label", "sequence-classification", "token-classification", "question-answering")
    for seed, kind in enumerate((*kinds, "feature-extraction")):
        found[kind] = prompt(backbone, task_of(kind, backbone), seed=seed)
    return found


WRITERS = ("writing", "behind", "long", "prefix", "hard")


@dataclass(frozen=True)
class Running:
    """A server.

    Attributes:
        desk: what answers in it.
        url: where it listens.
    """

    desk: Desk
    url: str

    def http(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def openai(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)


def started(settings: ServeSettings) -> Iterator[Running]:
    """Serve until the test is over; it must then stop by itself."""
    desk = server.desk_for(reference.backbone("llama"), {}, settings)
    for name, saved in prompts().items():
        desk.service.add(name, saved)
    listener = server.listen(settings)
    running = uvicorn.Server(server.config(create_app(desk), settings))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Running(desk, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        running.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
