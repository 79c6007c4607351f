"""What training makes small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.text.batch import IGNORED


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens over the whole vocabulary; a scalar, float32.

    Args:
        logits: `[B, S, V]`.
        targets: `[B, S]` int64, `IGNORED` where nothing is predicted.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def label_loss(logits: Tensor, words: Sequence[int], labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labels among the label words alone; a scalar, float32.

    Deviation from Lester et al. (2021), who train over the whole vocabulary: the answer is known to be a
    label word, so how likely other words are is not asked.

    Args:
        logits: `[B, S, V]`; the last position is scored.
        words: `[C]` the first token of each label word, all different.
        labels: `[B]` int64, each row's label.
    """
    columns = torch.as_tensor(words, device=logits.device)
    return F.cross_entropy(logits[:, -1].float()[:, columns], labels)


def answer_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each whole answer, `[B]` float32; arguments as in `answer_loss`."""
    logs = logits.float().log_softmax(dim=-1)
    each = logs.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    return each.masked_fill(targets == IGNORED, 0).sum(dim=-1)
