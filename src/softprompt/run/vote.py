"""How the prompts of an ensemble answer together (Lester et al. 2021, arXiv 2104.08691, section 6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.errors import SettingsError

By = Literal["vote", "mean"]
"""The label that most prompts choose (of equally many, the one with the highest mean probability), as in the paper; or
the label with the highest mean probability."""


def check_by(by: str) -> None:
    """
    Raises:
        SettingsError: prompts do not answer so.
    """
    if by not in By.__args__:  # type: ignore[attr-defined]
        raise SettingsError(f"by is {by!r}", where="by", instead=f"Use one of {', '.join(By.__args__)}.")  # type: ignore[attr-defined]


def mean_log_probabilities(each: Tensor) -> Tensor:
    """Log of the mean probabilities: `[N, ..., C]` log-probabilities by N prompts -> `[..., C]`."""
    return each.logsumexp(dim=0) - torch.tensor(float(len(each))).log()


def choice(each: Tensor, by: By = "vote") -> Tensor:
    """The label that N prompts choose together: `[N, ..., C]` log-probabilities -> `[...]` int64."""
    mean = mean_log_probabilities(each)
    if by == "mean":
        return mean.argmax(dim=-1)
    votes = F.one_hot(each.argmax(dim=-1), each.shape[-1]).sum(dim=0)
    most = votes == votes.amax(dim=-1, keepdim=True)
    return mean.masked_fill(~most, float("-inf")).argmax(dim=-1)
