"""What training makes small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.text.answers import BEGINS, ENDS
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


def odds_loss(odds: Tensor, applies: Tensor) -> Tensor:
    """Mean cross-entropy of yes or no over all labels of all rows; a scalar, float32.

    Args:
        odds: `[B, C]` log-odds of each label.
        applies: `[B, C]` bool.
    """
    return F.binary_cross_entropy_with_logits(odds.float(), applies.float())


def span_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of where an answer begins and where it ends; a scalar, float32. 0 where no row has an answer.

    Args:
        outputs: `[B, S, 2]` of a head: how much a token looks like a beginning, and like an end.
        targets: `[B, S]` int64, `BEGINS` and `ENDS` added up; `IGNORED` where a row has no token or no answer.
    """
    among, targets = among_read(outputs, targets), targets.clamp_min(0)
    rows = (targets & BEGINS).any(dim=1) & (targets & ENDS).any(dim=1)
    if not bool(rows.any()):
        return outputs.float().sum() * 0
    return (_at(among[rows, :, 0], targets[rows] & BEGINS) + _at(among[rows, :, 1], targets[rows] & ENDS)) / 2


def among_read(outputs: Tensor, targets: Tensor) -> Tensor:
    """`[B, S, 2]`: the outputs, as low as can be where a row has no token; arguments as in `span_loss`."""
    return outputs.masked_fill((targets == IGNORED)[..., None], torch.finfo(outputs.dtype).min)


def _at(outputs: Tensor, chosen: Tensor) -> Tensor:
    return F.cross_entropy(outputs.float(), chosen.bool().int().argmax(dim=1))


def likeness_loss(vectors: Tensor, groups: Tensor, temperature: float = 0.05) -> Tensor:
    """Rows of one group attract each other, others repel: the supervised contrastive loss (Khosla et al. 2020,
    arXiv 2004.11362, equation 2), mean over the rows that have a fellow in the batch; 0 where none has.

    Args:
        vectors: `[B, D]`.
        groups: `[B]` int64.
        temperature: what cosines are divided by.
    """
    unit = F.normalize(vectors.float(), dim=-1)
    itself = torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    likeness = (unit @ unit.T / temperature).masked_fill(itself, float("-inf")).log_softmax(dim=-1)
    fellows = (groups[:, None] == groups) & ~itself
    has = fellows.any(dim=-1)
    if not bool(has.any()):
        return vectors.float().sum() * 0
    each = likeness.masked_fill(~fellows, 0.0).sum(dim=-1)[has] / fellows.sum(dim=-1)[has]
    return -each.mean()


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
