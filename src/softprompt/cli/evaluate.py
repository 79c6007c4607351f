"""`softprompt eval`"""

from __future__ import annotations

from typing import Annotated

import typer

from softprompt.cli.common import (
    BatchSize,
    Cache,
    Debug,
    Dtype,
    Json,
    Model,
    Prompt,
    Quantization,
    Quiet,
    With,
    load_asked,
    load_backbone_of,
    show_json,
    show_metrics,
    verb,
)


@verb
def evaluate(
    folder: Prompt,
    data: Annotated[str, typer.Option(help="Rows with answers: .jsonl, .csv, .tsv, .parquet, or a Hub dataset.")],
    others: With = None,
    model: Model = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    batch_size: BatchSize = 32,
    cache: Cache = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a saved prompt, or an ensemble of them, on rows whose answers are known."""
    from softprompt import data as files
    from softprompt.learn.evaluation import evaluate as run

    prompt = load_asked(folder, others)
    rows = files.read(data)
    backbone = load_backbone_of(prompt, model, dtype, quantization, cache)
    metrics = run(backbone, prompt, rows, batch_size=batch_size, progress=not quiet)
    if as_json:
        show_json({"rows": len(rows), "metrics": metrics})
    else:
        show_metrics({"rows": len(rows), **metrics})
