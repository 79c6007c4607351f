"""How the prompts of an ensemble answer together (Lester et al. 2021, arXiv 2104.08691, section 6)."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.errors import SettingsError

By = Literal["vote", "mean"]
"""The label that most prompts choose (of equally many, the one with the highest mean probability), as in the paper; or
the label with the highest mean probability."""


def check_by(by: str | None, ensembles: bool) -> By:
    """How prompts answer together; "vote" unless said otherwise.

    Args:
        by: as it was given.
        ensembles: whether any ensemble is asked.

    Raises:
        SettingsError: prompts do not answer so, or none answer together.
    """
    if by is None:
        return "vote"
    if by not in get_args(By):
        raise SettingsError(f"by is {by!r}", where="by", instead=f"Use one of {', '.join(get_args(By))}.")
    if not ensembles:
        raise SettingsError(
            f"by is {by!r}, but that is how an ensemble chooses labels, and none is asked",
            where="by",
            instead="Leave it out, or ask an ensemble.",
        )
    return cast(By, by)


def mean_log_probabilities(each: Tensor) -> Tensor:
    """Log of the mean probabilities: `[N, ..., C]` log-probabilities by N prompts -> `[..., C]`."""
    return each.logsumexp(dim=0) - torch.tensor(float(len(each))).log()


def applying(each: Tensor, by: By = "vote") -> Tensor:
    """The labels that apply, as N prompts say together: `[N, ..., C]` log-odds -> `[..., C]` bool.

    By vote these are the labels that more than half of the prompts take to apply.
    """
    return (each.sigmoid() if by == "mean" else (each > 0).float()).mean(dim=0) > 0.5


def choice(each: Tensor, by: By = "vote") -> Tensor:
    """The label that N prompts choose together: `[N, ..., C]` log-probabilities -> `[...]` int64."""
    mean = mean_log_probabilities(each)
    if by == "mean":
        return mean.argmax(dim=-1)
    votes = F.one_hot(each.argmax(dim=-1), each.shape[-1]).sum(dim=0)
    most = votes == votes.amax(dim=-1, keepdim=True)
    return mean.masked_fill(~most, float("-inf")).argmax(dim=-1)
