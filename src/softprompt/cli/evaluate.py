"""`softprompt eval`"""

from __future__ import annotations

from typing import Annotated

import typer

from softprompt.cli.common import (
    BatchSize,
    Debug,
    Dtype,
    Json,
    Model,
    Prompt,
    Quantization,
    Quiet,
    load_backbone,
    show_json,
    show_metrics,
    verb,
)


@verb
def evaluate(
    folder: Prompt,
    data: Annotated[str, typer.Option(help="Rows with answers: .jsonl, .csv, .tsv, .parquet, or a Hub dataset.")],
    model: Model = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    batch_size: BatchSize = 32,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a saved prompt, or an ensemble of them, on rows whose answers are known."""
    from softprompt import data as files
    from softprompt.collection import SavedPrompts, load_any
    from softprompt.learn.evaluation import evaluate as run

    prompt = load_any(folder)
    if isinstance(prompt, SavedPrompts):
        prompt.check_ensemble(str(folder))
    rows = files.read(data)
    backbone = load_backbone(model or prompt.backbone_name, dtype or prompt.dtype, quantization=quantization)
    metrics = run(backbone, prompt, rows, batch_size=batch_size, progress=not quiet)
    if as_json:
        show_json({"rows": len(rows), "metrics": metrics})
    else:
        show_metrics({"rows": len(rows), **metrics})
