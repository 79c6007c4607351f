"""`softprompt serve`"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.common import Cache, Debug, load_backbone, verb
from softprompt.errors import DataError, RequestError, SettingsError

if TYPE_CHECKING:
    from softprompt.backbone.backbone import Backbone

_PREFIX = "SOFTPROMPT_"


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Let a file say what flags and the environment do not."""
    if path is None:
        return None
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as cause:
        raise typer.BadParameter(f"{path} cannot be read: {cause}") from None
    known = {p.name for p in context.command.params} - {"config"}
    named = {key.replace("-", "_"): value for key, value in found.items()}
    prompts = named.get("prompts")
    if isinstance(prompts, dict):
        named["prompts"] = [f"{name}={folder}" for name, folder in prompts.items()]
    strange = sorted(set(named) - known)
    if strange:
        raise typer.BadParameter(f"{path} has the keys {', '.join(strange)}; known are {', '.join(sorted(known))}")
    context.default_map = {**(context.default_map or {}), **named}
    return path


def _option(*names: str, help: str, env: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, envvar=_PREFIX + env, **more)


@verb
def serve(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=DIR]...", help="Prompts, and what requests call them.")
    ] = None,
    model: Annotated[
        str | None,
        _option(help="The backbone.", env="MODEL", show_default="that of the first prompt"),
    ] = None,
    config: Annotated[
        Path | None,
        _option(
            help="A TOML file of these options; flags and the environment (SOFTPROMPT_PORT and so on) go before it. "
            "Prompts stand in a table [prompts].",
            env="CONFIG",
            is_eager=True,
            callback=_from_file,
        ),
    ] = None,
    host: Annotated[str, _option(help="The address to listen on.", env="HOST")] = "127.0.0.1",
    port: Annotated[int, _option(help="The port; 0 for any that is free.", env="PORT")] = 8000,
    api_key_file: Annotated[
        Path | None, _option(help="A file of keys, one a line; a request must bring one of them.", env="API_KEY_FILE")
    ] = None,
    rows: Annotated[int, _option(help="Answers written at once, and rows answered in one pass.", env="ROWS")] = 32,
    queue: Annotated[int, _option(help="Rows that may wait; more get status 429.", env="QUEUE")] = 256,
    memory: Annotated[
        float | None,
        _option(
            help="Gigabytes that prompts, and what they are compiled to, may take; those not asked for longest leave.",
            env="MEMORY",
            show_default="no bound",
        ),
    ] = None,
    max_body: Annotated[int, _option(help="The most bytes of a request.", env="MAX_BODY")] = 1024 * 1024,
    max_input: Annotated[
        int, _option(help="The most characters of all texts of a request.", env="MAX_INPUT")
    ] = 200_000,
    max_new_tokens: Annotated[int, _option(help="The most tokens of one answer.", env="MAX_NEW_TOKENS")] = 1024,
    timeout: Annotated[float, _option(help="Seconds that a request may take.", env="TIMEOUT")] = 300.0,
    drain: Annotated[
        float, _option(help="Seconds that what is running has to finish when the server stops.", env="DRAIN")
    ] = 30.0,
    allow_loading: Annotated[
        bool,
        _option(
            "--allow-loading/--no-allow-loading",
            help="Let requests load prompts from folders of this machine, and unload them.",
            env="ALLOW_LOADING",
        ),
    ] = False,
    dtype: Annotated[
        str | None,
        _option(help="float32, bfloat16 or float16.", env="DTYPE", show_default="as the first prompt was trained"),
    ] = None,
    quantization: Annotated[
        str | None,
        _option(help="int8, nf4 or none.", env="QUANTIZATION", show_default="as the first prompt was trained"),
    ] = None,
    cache: Cache = None,
    log_level: Annotated[str, _option(help="debug, info, warning or error.", env="LOG_LEVEL")] = "info",
    debug: Debug = False,
) -> None:
    """Answer for every prompt over HTTP, from one model: OpenAI's routes and /v1/classify."""
    try:
        from softprompt.serve import logs, server
        from softprompt.serve.settings import ServeSettings, read_keys
    except ModuleNotFoundError as missing:
        raise RequestError(
            f"the server needs {missing.name}, which is not installed", instead="pip install 'softprompt[serve]'"
        ) from missing

    folders = _named(prompts or [])
    if model is None and not folders:
        raise SettingsError("there is nothing to serve", instead="Give --model, or prompts: NAME=DIR.")
    if log_level not in ("debug", "info", "warning", "error"):
        raise SettingsError(f"{log_level!r} is no level", where="--log-level", instead="debug, info, warning or error.")
    settings = ServeSettings(
        host=host,
        port=port,
        keys=read_keys(api_key_file) if api_key_file is not None else (),
        rows=rows,
        queue=queue,
        memory=None if memory is None else int(memory * 1024**3),
        max_body=max_body,
        max_input=max_input,
        max_new_tokens=max_new_tokens,
        timeout=timeout,
        drain=drain,
        loading=allow_loading,
    )
    logs.set_up(log_level)
    backbone = _backbone(model, folders, dtype, quantization, cache)
    server.run(server.desk_for(backbone, folders, settings))


def _named(prompts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in prompts:
        name, equals, folder = pair.partition("=")
        if not equals or not name or not folder:
            raise DataError(f"{pair!r} is no NAME=DIR", instead="Write topic=prompts/topic and the like.")
        if name in found:
            raise SettingsError(f"{name!r} stands there twice", instead="Give each prompt a name of its own.")
        found[name] = folder
    return found


def _backbone(
    model: str | None, folders: dict[str, str], dtype: str | None, quantization: str | None, cache: Path | None
) -> Backbone:
    """The model that is named, or that of the first prompt; as that was trained, unless said otherwise."""
    from softprompt.cli.common import load_backbone_of
    from softprompt.collection import load_any

    if folders:
        return load_backbone_of(load_any(next(iter(folders.values()))), model, dtype, quantization, cache)
    assert model is not None, "something is served"
    return load_backbone(model, dtype or "float32", quantization=quantization, cache=cache)
