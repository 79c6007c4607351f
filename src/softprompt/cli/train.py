"""`softprompt train`"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from softprompt.cli import several
from softprompt.cli.common import Debug, Json, Quiet, load_backbone, show_cut, show_json, show_metrics, verb
from softprompt.errors import SettingsError

if TYPE_CHECKING:
    from softprompt.learn.profile import Profile

_TASK, _METHOD, _TRAINING, _SEVERAL = "The task", "What is learned", "Training", "Several tasks, several seeds"


def _option(help: str, panel: str, default: str | None = None) -> Any:
    return typer.Option(help=help, rich_help_panel=panel, show_default=default or False)


@verb
def train(
    data: Annotated[
        list[str],
        _option(
            "Rows to learn from: .jsonl, .csv, .tsv, .parquet, or a Hub dataset. NAME=FILE for each of several tasks.",
            _TASK,
        ),
    ],
    template: Annotated[
        list[str],
        _option(
            "Text with {soft} or {soft:N}, {field} and, last, {label} ({mask} for encoders). \\n is a line break. Of "
            "several tasks, one for all, or NAME=TEMPLATE.",
            _TASK,
        ),
    ],
    out: Annotated[Path, _option("The folder to save the prompt to.", _TASK)],
    labels: Annotated[
        list[str] | None,
        _option(
            "a,b,c or a=word,b=word. Without labels the answer is generated. Of several tasks, one for all, or "
            "NAME=a,b,c.",
            _TASK,
        ),
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        _option("Rows to measure on; the best evaluation is kept. Of several tasks, NAME=FILE for each.", _TASK),
    ] = None,
    kind: Annotated[
        str | None,
        _option(
            "generation, classification, multi-label (words); sequence-classification, token-classification, "
            "question-answering (a trained head); feature-extraction (vectors).",
            _TASK,
            default="classification with labels, else generation",
        ),
    ] = None,
    field: Annotated[
        str | None, _option("The field inside which words are labelled or answers found.", _TASK, default="the last")
    ] = None,
    none: Annotated[str | None, _option("The word for no label, of multi-label.", _TASK, default="none")] = None,
    target: Annotated[str, _option("The field that holds the answer.", _TASK, default="label")] = "label",
    max_length: Annotated[
        int | None, _option("The most tokens a row may take.", _TASK, default="what the model holds")
    ] = None,
    model: Annotated[
        str, _option("A folder, an installed weight package, or a Hub id.", _METHOD, default="smollm2")
    ] = "smollm2",
    dtype: Annotated[
        str, _option("float32, bfloat16 or float16: of the frozen model.", _METHOD, default="float32")
    ] = "float32",
    quantization: Annotated[
        str | None, _option("Keep its weights in fewer bits: int8 (torchao) or nf4 (bitsandbytes).", _METHOD)
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing", help="Recompute its layers instead of keeping them.", rich_help_panel=_METHOD
        ),
    ] = False,
    compile: Annotated[
        bool,
        typer.Option("--compile", help="Compile its layers; slow to begin with.", rich_help_panel=_METHOD),
    ] = False,
    method: Annotated[
        str,
        _option(
            "prompt-tuning, prefix-tuning, p-tuning, multitask, context-aware, or hard-prompt to measure the text "
            "alone.",
            _METHOD,
            default="prompt-tuning",
        ),
    ] = "prompt-tuning",
    tokens: Annotated[int | None, _option("Virtual tokens of each {soft}.", _METHOD, default="20")] = None,
    init: Annotated[
        str | None,
        _option("vocabulary, text, labels or random; a prefix also zero.", _METHOD, default="vocabulary"),
    ] = None,
    setting: Annotated[
        list[str] | None,
        _option("NAME=VALUE: any other setting of the method, such as encoder=mlp or examples=8.", _METHOD),
    ] = None,
    init_text: Annotated[str | None, _option("The words to start from, for --init text.", _METHOD)] = None,
    steps: Annotated[int | None, _option("Optimizer steps.", _TRAINING, default="150")] = None,
    batch_size: Annotated[int | None, _option("Rows per step.", _TRAINING, default="16")] = None,
    learning_rate: Annotated[float | None, _option("Of AdamW.", _TRAINING, default="the method's own")] = None,
    schedule: Annotated[str | None, _option("linear, cosine or constant.", _TRAINING, default="linear")] = None,
    warmup: Annotated[
        float | None, _option("Share of the steps over which the learning rate rises.", _TRAINING, default="0.06")
    ] = None,
    weight_decay: Annotated[float | None, _option("Of AdamW.", _TRAINING, default="0")] = None,
    max_grad_norm: Annotated[float | None, _option("Gradients are clipped to it.", _TRAINING, default="1")] = None,
    loss: Annotated[
        str | None, _option("labels (among the label words) or vocabulary.", _TRAINING, default="labels")
    ] = None,
    eval_every: Annotated[int | None, _option("Steps between evaluations.", _TRAINING, default="three in all")] = None,
    group_by_length: Annotated[
        bool | None,
        typer.Option("--group-by-length", help="Rows of like length stand in one step.", rich_help_panel=_TRAINING),
    ] = None,
    cache_bytes: Annotated[
        int | None, _option("Memory for texts that are read once.", _TRAINING, default="4 GiB")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            help="A folder where these texts are kept, for other runs and tasks to find.",
            rich_help_panel=_TRAINING,
            metavar="DIR",
        ),
    ] = None,
    seed: Annotated[int | None, _option("Of the init and of the order of rows.", _TRAINING, default="0")] = None,
    begin_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="A saved prompt of the same method to begin from; with multitask, prompts of several tasks, too.",
            rich_help_panel=_TRAINING,
            metavar="DIR",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        _option("An ensemble: how many prompts, each of a seed of its own from --seed on; or a list, 0,1,7.", _SEVERAL),
    ] = None,
    distill: Annotated[
        float | None,
        _option("Several tasks: how much is learned from a teacher for each; 0 is off.", _SEVERAL, default="0.9"),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        _option("Several tasks: NAME=DIR, a saved prompt for a teacher. The others are trained first.", _SEVERAL),
    ] = None,
    teacher_steps: Annotated[
        int | None, _option("Several tasks: optimizer steps of a teacher.", _SEVERAL, default="those of --steps")
    ] = None,
    teacher_learning_rate: Annotated[
        float | None,
        _option("Several tasks: learning rate of a teacher.", _SEVERAL, default="that of --learning-rate"),
    ] = None,
    mixing_limit: Annotated[
        int | None,
        _option("Several tasks: rows of one that count for its share in a step.", _SEVERAL, default="262144"),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            "--profile",
            help="Show where a step's time goes, and write that into a folder.",
            rich_help_panel=_TRAINING,
            metavar="DIR",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=_TRAINING)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a prompt that stands there.", rich_help_panel=_TRAINING)
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a prompt on rows and save it; or prompts of several tasks that share a part, or of several seeds.

    softprompt train --data news.jsonl --template "Article: {text}\\n{soft:10}Topic: {label}"
    --labels business,sports,tech --out prompts/topic

    softprompt train --method multitask --data topic=news.jsonl --data tone=reviews.jsonl
    --template "{text}\\n{soft:10}Answer: {label}" --labels topic=business,sports --labels tone=good,bad
    --out prompts/sources
    """
    from softprompt import artifact
    from softprompt import data as files
    from softprompt.learn.profile import Profile
    from softprompt.learn.settings import Settings
    from softprompt.learn.sources import check_sources
    from softprompt.learn.training import check_options
    from softprompt.learn.training import train as run
    from softprompt.prompts import method_named
    from softprompt.text.task import Task
    from softprompt.text.template import Slot

    # Whatever can be refused is refused before the model is loaded.
    chosen = method_named(method, _settings(setting) | _given(tokens=tokens, init=init, text=init_text))
    options = _given(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        loss=loss,
        eval_every=eval_every,
        group_by_length=group_by_length,
        cache_bytes=cache_bytes,
        seed=seed,
    )
    settings = Settings(**options)
    if begin_from is not None:
        several.refuse({"--init": init, "--init-text": init_text}, "it begins where the prompt of --from ended")

    def task_of(template: str, labels: str | None) -> Task:
        task = Task(
            template.replace("\\n", "\n"),
            _labels(labels),
            kind=cast(Any, kind),
            none=none,
            target=target,
            field=field,
            max_length=max_length,
        )
        slots = [segment for segment in task.template.segments if isinstance(segment, Slot)]
        if slots and all(slot.tokens is not None for slot in slots):
            several.refuse({"--tokens": tokens}, "every {soft:N} of the template says how long it is")
        return task

    of_sources = _given(
        distill=distill,
        teacher_steps=teacher_steps,
        teacher_learning_rate=teacher_learning_rate,
        mixing_limit=mixing_limit,
    )
    load = partial(
        load_backbone,
        model,
        dtype,
        quantization=quantization,
        gradient_checkpointing=gradient_checkpointing,
        compile=compile,
        cache=cache,
    )
    common: dict[str, Any] = {
        "output": out,
        "overwrite": overwrite,
        "resume": resume,
        "progress": not quiet,
        "settings": settings,
        "callbacks": [] if profile is None else [Profile(profile)],
    }
    if several.names_sources(data):
        several.refuse({"--from": begin_from, "--seeds": seeds}, "it is for one task")
        places = several.named(data, "--data")
        check_sources(list(places), chosen, settings, **of_sources)
        templates, words = (
            several.for_each(values, option, list(places))
            for values, option in ((template, "--template"), (labels, "--labels"))
        )
        without = next((name for name in places if name not in templates), None)
        if without is not None:
            raise SettingsError(f"there is none for {without}", where="--template", instead=f"Give {without}=TEMPLATE.")
        tasks = {name: task_of(templates[name], words.get(name)) for name in places}
        measured, teachers = (
            several.named(values, option, list(places))
            for values, option in ((eval_data, "--eval-data"), (teacher, "--teacher"))
        )
        several.train_sources(chosen, tasks, places, measured, teachers, of_sources, load, common, as_json)
        _show_profile(common["callbacks"], as_json)
        return
    idle = {f"--{name.replace('_', '-')}": value for name, value in of_sources.items()}
    several.refuse({**idle, "--teacher": teacher}, "it is for several tasks, and there is one")
    task = task_of(several.one(template, "--template") or "", several.one(labels, "--labels"))
    check_options(chosen, task, options)
    held_out_at = several.one(eval_data, "--eval-data")
    if seeds is not None:
        several.refuse({"--from": begin_from}, "an ensemble's prompts begin from seeds")
    chosen_seeds = None if seeds is None else several.read_seeds(seeds)
    artifact.check_output(out, overwrite=overwrite)
    rows = files.read(data[0])
    held_out = files.read(held_out_at) if held_out_at else None
    if chosen_seeds is not None:
        several.train_ensemble(chosen, task, rows, held_out, chosen_seeds, load, common, as_json)
        _show_profile(common["callbacks"], as_json)
        return
    backbone = load()
    with several.resumable():
        result = run(backbone, task, chosen, rows, held_out, start=begin_from, **common)
    facts = result.prompt.training
    if as_json:
        show_json(
            {"path": str(out), "bytes": result.prompt.nbytes, "metrics": dict(result.metrics), "training": dict(facts)}
        )
        return
    show_metrics(result.metrics)
    show_cut(facts)
    typer.echo(f"Saved to {out}: {result.prompt.values.tokens} virtual tokens, {result.prompt.nbytes:,} bytes.")
    _show_profile(common["callbacks"], as_json)


def _show_profile(callbacks: Sequence[Profile], as_json: bool) -> None:
    for profile in () if as_json else callbacks:
        if profile.report is None:
            typer.echo("\nNothing was learned, so there is no profile.")
        else:
            typer.echo(
                f"\n{profile.report}\n\n"
                f"In {profile.folder}: profile.txt, profile.json, and trace.json (one step) for Perfetto."
            )


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    """Values are read as JSON where they are some (true, 12); otherwise they are text, `\\n` in it a line break."""
    import json

    settings = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise SettingsError(f"{pair!r} is no NAME=VALUE", where="--setting", instead="Write encoder=mlp, say.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value.replace("\\n", "\n")
    return settings


def _given(**options: object) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _labels(text: str | None) -> dict[str, str] | list[str] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not any("=" in part for part in parts):
        return parts
    pairs = [part.partition("=") for part in parts]
    if not all(equals for _, equals, _ in pairs):
        raise SettingsError(
            f"some labels have a word and some have none: {text}",
            where="--labels",
            instead="Write a,b,c, or a=word,b=word for all of them.",
        )
    if len({label for label, _, _ in pairs}) < len(pairs):
        raise SettingsError(f"a label stands twice in {text}", where="--labels", instead="Each must be there once.")
    return {label.strip(): word.strip() for label, _, word in pairs}
