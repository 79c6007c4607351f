"""One frozen language model, many tasks, each task a file of a few kilobytes.

The names below are the public interface. They are imported when first used, so that `import softprompt` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "softprompt.backbone.backbone",
    "TextCache": "softprompt.backbone.text_cache",
    "Task": "softprompt.text.task",
    "HardPrompt": "softprompt.prompts",
    "PromptTuning": "softprompt.prompts",
    "PrefixTuning": "softprompt.prompts",
    "PTuning": "softprompt.prompts",
    "ContextAwarePromptTuning": "softprompt.prompts",
    "MultitaskPromptTuning": "softprompt.prompts",
    "Settings": "softprompt.learn.settings",
    "Profile": "softprompt.learn.profile",
    "train": "softprompt.learn.training",
    "Source": "softprompt.learn.sources",
    "train_sources": "softprompt.learn.sources",
    "train_ensemble": "softprompt.learn.ensemble",
    "evaluate": "softprompt.learn.evaluation",
    "load": "softprompt.artifact",
    "load_all": "softprompt.collection",
    "ensemble": "softprompt.collection",
    "save": "softprompt.artifact",
    "save_all": "softprompt.collection",
    "Engine": "softprompt.answer.engine",
    "SoftpromptError": "softprompt.errors",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from softprompt.answer.engine import Engine as Engine
    from softprompt.artifact import load as load
    from softprompt.artifact import save as save
    from softprompt.backbone.backbone import Backbone as Backbone
    from softprompt.backbone.text_cache import TextCache as TextCache
    from softprompt.collection import ensemble as ensemble
    from softprompt.collection import load_all as load_all
    from softprompt.collection import save_all as save_all
    from softprompt.errors import SoftpromptError as SoftpromptError
    from softprompt.learn.ensemble import train_ensemble as train_ensemble
    from softprompt.learn.evaluation import evaluate as evaluate
    from softprompt.learn.profile import Profile as Profile
    from softprompt.learn.settings import Settings as Settings
    from softprompt.learn.sources import Source as Source
    from softprompt.learn.sources import train_sources as train_sources
    from softprompt.learn.training import train as train
    from softprompt.prompts import ContextAwarePromptTuning as ContextAwarePromptTuning
    from softprompt.prompts import HardPrompt as HardPrompt
    from softprompt.prompts import MultitaskPromptTuning as MultitaskPromptTuning
    from softprompt.prompts import PrefixTuning as PrefixTuning
    from softprompt.prompts import PromptTuning as PromptTuning
    from softprompt.prompts import PTuning as PTuning
    from softprompt.text.task import Task as Task


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'softprompt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
