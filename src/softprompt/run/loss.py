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
    return F.cross_entropy(*_predicted(logits, targets))


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
    return F.cross_entropy(logits[:, -1, columns].float(), labels)


def answer_log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each whole answer, `[B]` float32; arguments as in `answer_loss`."""
    each = -F.cross_entropy(*_predicted(logits, targets), reduction="none")
    return each.new_zeros(targets.shape).masked_scatter(targets != IGNORED, each).sum(dim=-1)


def _predicted(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[N, V]` float32 and targets `[N]` of the N positions where something is predicted.

    The others are left out before anything is made float32: a vocabulary is wide, and answers differ in length.
    """
    kept = targets != IGNORED
    if bool(kept.all()):
        return logits.flatten(0, 1).float(), targets.flatten()
    return logits[kept].float(), targets[kept]
