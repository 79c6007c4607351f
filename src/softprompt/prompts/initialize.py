"""Where virtual tokens start: random, sampled vocabulary, a text's words, the label words (Lester et al. 2021, 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from softprompt.errors import SettingsError
from softprompt.prompts.method import Host

Init = Literal["random", "vocabulary", "text", "labels"]

# The paper samples among the 5,000 most common tokens. Byte-pair and unigram vocabularies are numbered by frequency,
# so the first 5,000 ordinary ids stand for them.
COMMON = 5000


def random(tokens: int, host: Host, generator: torch.Generator) -> Tensor:
    """Uniform in [-0.5, 0.5], as the paper has it (its code draws from [0, 0.5)). `[P, D]`"""
    return torch.rand(tokens, host.width, generator=generator) - 0.5


def sampled_vocabulary(tokens: int, host: Host, generator: torch.Generator) -> Tensor:
    """Embeddings of common tokens, without replacement while there are enough of them. `[P, D]`"""
    common = [i for i in range(host.size) if i not in host.special][:COMMON]
    if tokens <= len(common):
        chosen = torch.randperm(len(common), generator=generator)[:tokens]
    else:
        chosen = torch.randint(len(common), (tokens,), generator=generator)
    return host.embed(torch.tensor(common)[chosen])


def text(content: str, tokens: int, host: Host) -> Tensor:
    """Embeddings of a text's tokens, repeated from its beginning or cut to P of them. `[P, D]`

    Raises:
        SettingsError: the text has no token.
    """
    ids = host.encode(content)
    if not ids:
        raise SettingsError("the init text is empty", where="text", instead="Give some words, or init='vocabulary'.")
    repeated = (ids * (tokens // len(ids) + 1))[:tokens]
    return host.embed(torch.tensor(repeated))


def class_labels(tokens: int, host: Host, generator: torch.Generator) -> Tensor:
    """Each label word's mean embedding at one position, sampled vocabulary at the rest. `[P, D]`

    Raises:
        SettingsError: the task has no labels, or more of them than there are virtual tokens.
    """
    if not host.labels:
        raise SettingsError(
            "init='labels' needs a task with label words",
            where="init",
            instead="Use init='vocabulary' or init='text' for generation and for tasks with a trained head.",
        )
    if len(host.labels) > tokens:
        raise SettingsError(
            f"init='labels' takes a virtual token for each of the {len(host.labels)} labels, not {tokens}",
            where="tokens",
            instead="Give more tokens, or init='vocabulary'.",
        )
    means = [host.embed(torch.tensor(word)).mean(dim=0) for word in host.labels]
    rest = sampled_vocabulary(tokens, host, generator)[len(means) :]
    return torch.cat([torch.stack(means), rest])


def initialize(init: Init, tokens: int, host: Host, generator: torch.Generator, content: str | None = None) -> Tensor:
    """P starting vectors, `[P, D]` float32. `content` is the text for init="text"."""
    starts: dict[Init, Callable[[], Tensor]] = {
        "random": lambda: random(tokens, host, generator),
        "vocabulary": lambda: sampled_vocabulary(tokens, host, generator),
        "text": lambda: text(content or "", tokens, host),
        "labels": lambda: class_labels(tokens, host, generator),
    }
    return starts[init]().detach().float().clone()


def check_init(init: str, content: str | None) -> None:
    """
    Raises:
        SettingsError: no such init, or a text that does not go with it.
    """
    known = Init.__args__  # type: ignore[attr-defined]
    if init not in known:
        raise SettingsError(f"init {init!r} is unknown", where="init", instead=f"Use one of {', '.join(known)}.")
    if content is not None and not isinstance(content, str):
        raise SettingsError(f"text is {content!r}", where="text", instead="Give it as text.")
    if (init == "text") != (content is not None):
        raise SettingsError(
            "init='text' needs a text" if init == "text" else f"a text is given, but init is {init!r}",
            where="text",
            instead="Give both init='text' and text='...', or neither.",
        )
