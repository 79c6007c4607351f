"""What is learned. Knows torch, not transformers."""

from softprompt.prompts.hard_prompt import HardPrompt
from softprompt.prompts.method import Method
from softprompt.prompts.prompt_tuning import PromptTuning

METHODS: dict[str, type[Method]] = {method.NAME: method for method in (HardPrompt, PromptTuning)}

__all__ = ["METHODS", "HardPrompt", "Method", "PromptTuning"]
