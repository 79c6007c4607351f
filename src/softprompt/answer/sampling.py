"""How the tokens of an answer are chosen."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from softprompt.errors import SettingsError

MOST_ALTERNATIVES = 20
MOST_STOPS = 16
_MOST = 2**63


@dataclass(frozen=True)
class Sampling:
    """How one answer is written, or several to one row.

    Attributes:
        max_new_tokens: the most tokens of an answer.
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        top_p: tokens are drawn from the likeliest that have this much probability together.
        top_k: and from so many at most; 0 for no bound.
        seed: with one, the same request gives the same answer, whatever is asked beside it.
        stop: text before which an answer ends.
        logprobs: how many of the likeliest tokens are told at each place (0 for the chosen one alone); None for none.
        n: how many answers are written.
        presence_penalty, frequency_penalty: what a token that was written loses of its logit, once or each time.

    Raises:
        SettingsError: one of them is out of range.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("max_new_tokens", 1, None),
            ("temperature", 0, 100),
            ("top_p", 0, 1),
            ("top_k", 0, None),
            ("logprobs", 0, MOST_ALTERNATIVES),
            ("n", 1, 128),
            ("presence_penalty", -2, 2),
            ("frequency_penalty", -2, 2),
            ("seed", -_MOST, _MOST - 1),
        ):
            value = getattr(self, name)
            # Written so that NaN is out of range.
            if value is not None and not (least <= value and (most is None or value <= most)):
                bounds = f"from {least} to {most}" if most is not None else f"of {least} or more"
                raise SettingsError(f"{value!r} is out of range", where=name, instead=f"Give a number {bounds}.")
        if self.top_p == 0:
            raise SettingsError("0 leaves no token", where="top_p", instead="Give a number above 0, up to 1.")
        if len(self.stop) > MOST_STOPS or not all(self.stop):
            raise SettingsError(
                f"{len(self.stop)} stop strings" if all(self.stop) else "a stop string is empty",
                where="stop",
                instead=f"Give up to {MOST_STOPS}, each of a character or more.",
            )


@dataclass(frozen=True)
class Token:
    """A token that was written.

    Attributes:
        id: its number.
        logprob: its log-probability by the model itself, before temperature and all else; None where it was not asked.
        top: the likeliest tokens in its place with theirs, likeliest first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one answer.

    Args:
        sampling: how.
        choice: which of `n` answers it is, from 0; each has random numbers of its own.
    """

    def __init__(self, sampling: Sampling, choice: int = 0) -> None:
        self._sampling = sampling
        self._written: Counter[int] = Counter()
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            # A generator looks at 32 bits of a seed alone: all of both numbers are mixed into them.
            mixed = hashlib.sha256(f"{sampling.seed}/{choice}".encode()).digest()
            self._random.manual_seed(int.from_bytes(mixed[:4], "big"))
        self._warpers = LogitsProcessorList()
        if sampling.temperature not in (0, 1):
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(float(sampling.top_p)))

    def __call__(self, logits: Tensor) -> Token:
        """The next token, from logits `[V]`."""
        logits = logits.float()
        scores = self._penalised(logits)
        if self._sampling.temperature == 0:
            chosen = int(scores.argmax())
        else:
            scores = self._warpers(torch.empty(1, 0, dtype=torch.long), scores[None])[0]
            # Drawn on the CPU: the same numbers wherever the model is.
            chosen = int(torch.multinomial(scores.softmax(dim=-1).cpu(), 1, generator=self._random))
        self._written[chosen] += 1
        if self._sampling.logprobs is None:
            return Token(chosen)
        each = logits.log_softmax(dim=-1)
        likeliest, ids = each.topk(self._sampling.logprobs)
        return Token(chosen, float(each[chosen]), tuple(zip(ids.tolist(), likeliest.tolist(), strict=True)))

    def _penalised(self, logits: Tensor) -> Tensor:
        once, each = self._sampling.presence_penalty, self._sampling.frequency_penalty
        if not self._written or not (once or each):
            return logits
        ids = torch.tensor(list(self._written), device=logits.device)
        counts = torch.tensor(list(self._written.values()), device=logits.device)
        return logits.index_add(0, ids, -(once + each * counts.float()))
