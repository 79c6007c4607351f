"""`/v1/models`, and the routes that load and unload prompts while others are asked."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse

from softprompt.errors import ArtifactError, UnknownPromptError
from softprompt.serve.desk import Desk
from softprompt.serve.errors import RESPONSES
from softprompt.serve.schema import (
    LoadLoraRequest,
    LoadRequest,
    ModelCard,
    ModelList,
    UnloadLoraRequest,
    UnloadRequest,
)


def router(desk: Desk) -> APIRouter:
    routes = APIRouter(tags=["models"], responses=dict(RESPONSES))

    @routes.get("/v1/models", response_model=ModelList, response_model_exclude_none=True)
    async def models(request: Request) -> ModelList:
        """The model itself, where it can be asked, and all prompts."""
        desk.call(request, "models")
        return ModelList(data=_cards(desk))

    @routes.get("/v1/models/{model:path}", response_model=ModelCard, response_model_exclude_none=True)
    async def model(model: str, request: Request) -> ModelCard:
        """One of them."""
        desk.call(request, "models")
        found = next((card for card in _cards(desk) if card.id == model), None)
        if found is None:
            raise UnknownPromptError(f"there is no model called {model!r}", instead="GET /v1/models tells all.")
        return found

    return routes


def loading_router(desk: Desk) -> APIRouter:
    """For a server that allows it."""
    routes = APIRouter(tags=["models"], responses=dict(RESPONSES), default_response_class=PlainTextResponse)

    async def load(name: str, path: str, replace: bool) -> str:
        try:
            await asyncio.to_thread(desk.add, name, path, replace=replace)
        except ArtifactError as error:
            if "no such folder" in error.what:
                raise UnknownPromptError(error.what, where=error.where, instead=error.instead) from error
            raise
        return f"Success: prompt {name!r} is loaded."

    async def unload(name: str) -> str:
        await asyncio.to_thread(desk.service.remove, name)
        return f"Success: prompt {name!r} is unloaded."

    @routes.post("/v1/load_prompt")
    async def load_prompt(asked: LoadRequest, request: Request) -> str:
        """Take in a prompt from a folder of the server's machine."""
        desk.call(request, "load")
        return await load(asked.prompt_name, asked.prompt_path, asked.load_inplace)

    @routes.post("/v1/unload_prompt")
    async def unload_prompt(asked: UnloadRequest, request: Request) -> str:
        """Forget a prompt; what was asked of it is still answered."""
        desk.call(request, "unload")
        return await unload(asked.prompt_name)

    @routes.post("/v1/load_lora_adapter")
    async def load_lora_adapter(asked: LoadLoraRequest, request: Request) -> str:
        """As load_prompt, for scripts that were written for LoRA adapters."""
        desk.call(request, "load")
        return await load(asked.lora_name, asked.lora_path, asked.load_inplace)

    @routes.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(asked: UnloadLoraRequest, request: Request) -> str:
        """As unload_prompt."""
        desk.call(request, "unload")
        return await unload(asked.lora_name)

    return routes


def _cards(desk: Desk) -> list[ModelCard]:
    library = desk.service.library
    cards = [] if desk.plain is None else [ModelCard(id=desk.name, created=desk.started, root=desk.name)]
    folders, loaded = desk.service.read(lambda: (dict(library.folders), dict(library.prompts)))
    for name in sorted(folders):
        task = loaded[name].task if name in loaded else None
        cards.append(
            ModelCard(
                id=name,
                created=desk.started,
                root=str(folders[name] or name),
                parent=desk.name,
                task=None if task is None else task.kind,
                labels=list(task.labels) if task is not None and task.labels else None,
            )
        )
    return cards
