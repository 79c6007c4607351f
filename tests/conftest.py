"""What every test may ask for."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest

# No test may depend on the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))

import torch

from softprompt.backbone.backbone import Backbone

torch.set_num_threads(1)

# Every training collects garbage; to go through what the imports left each time doubles what the tests take.
gc.freeze()


@pytest.fixture(scope="session")
def smollm2() -> Backbone:
    """The real decoder, float32."""
    return Backbone.load("smollm2", dtype="float32")


@pytest.fixture(scope="session")
def minilm() -> Backbone:
    """The real encoder, float32; it has no language modelling head."""
    return Backbone.load("minilm", dtype="float32")
