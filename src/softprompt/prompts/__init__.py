"""What is learned. Knows torch, not transformers."""

from collections.abc import Mapping
from typing import Any

from softprompt.errors import SettingsError
from softprompt.prompts.context_aware import ContextAwarePromptTuning
from softprompt.prompts.hard_prompt import HardPrompt
from softprompt.prompts.method import Method
from softprompt.prompts.multitask import MultitaskPromptTuning
from softprompt.prompts.p_tuning import PTuning
from softprompt.prompts.prefix_tuning import PrefixTuning
from softprompt.prompts.prompt_tuning import PromptTuning

METHODS: dict[str, type[Method]] = {
    method.NAME: method
    for method in (HardPrompt, PromptTuning, PrefixTuning, PTuning, MultitaskPromptTuning, ContextAwarePromptTuning)
}


def method_named(name: str, settings: Mapping[str, Any]) -> Method:
    """The method that files and the command line call `name`.

    Raises:
        SettingsError: no such method, or a setting it does not have.
    """
    if name not in METHODS:
        raise SettingsError(f"method {name!r} is unknown", where="method", instead=f"Use one of {', '.join(METHODS)}.")
    known = METHODS[name].setting_names()
    unknown = [setting for setting in settings if setting not in known]
    if unknown:
        raise SettingsError(
            f"{name} has no setting {', '.join(unknown)}",
            where="method",
            instead=f"It has {', '.join(known)}." if known else "It has none.",
        )
    return METHODS[name](**settings)


__all__ = [
    "METHODS",
    "ContextAwarePromptTuning",
    "HardPrompt",
    "Method",
    "MultitaskPromptTuning",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "method_named",
]
