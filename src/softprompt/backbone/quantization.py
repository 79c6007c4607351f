"""A backbone whose weights are kept in fewer bits, where the library for it is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from softprompt.errors import SettingsError

LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}
"""For each way of keeping weights the library it needs."""


def config_for(quantization: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is told so that it keeps weights that way; nothing for None.

    Args:
        quantization: "int8" (eight bits a weight, with torchao) or "nf4" (four, with bitsandbytes).
        dtype: of the computation.

    Raises:
        SettingsError: an unknown way, or its library is not installed.
    """
    if quantization is None:
        return {}
    if quantization not in LIBRARIES:
        raise SettingsError(
            f"quantization {quantization!r} is unknown",
            where="quantization",
            instead=f"Use one of {', '.join(LIBRARIES)}, or None.",
        )
    library = LIBRARIES[quantization]
    if importlib.util.find_spec(library) is None:
        raise SettingsError(
            f"{quantization} needs {library}, which is not installed",
            where="quantization",
            instead=f"Run `pip install {library}`, or load the weights as they are (--quantization none).",
        )
    if quantization == "int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
    from transformers import BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": four}
