"""What a training run makes small: the loss over a step's rows, of one task or of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.learn.settings import Settings
from softprompt.prompts.method import Parametrization
from softprompt.run.forward import Answers, Filling, Forward
from softprompt.run.loss import answer_loss, label_loss
from softprompt.text.examples import Example
from softprompt.text.verbalizer import Verbalizer

Row = tuple[int, Example]
"""The number of a task, and an example of it."""


@dataclass(frozen=True)
class AnswerLoss:
    """Cross-entropy of a task's answers.

    Attributes:
        words: the first token of each label word, where the loss is among these alone; None for the whole vocabulary.
    """

    words: tuple[int, ...] | None = None

    @classmethod
    def of(cls, settings: Settings, verbalizer: Verbalizer | None) -> AnswerLoss:
        """The loss that the settings ask for, as far as the task allows it."""
        if settings.loss == "vocabulary" or verbalizer is None or not verbalizer.by_first_token:
            return cls()
        return cls(tuple(word[0] for word in verbalizer.words))

    def rows(self, logits: Tensor, targets: Tensor, examples: Sequence[Example]) -> Tensor:
        """Mean over rows (over the whole vocabulary: over tokens), a scalar; see `run.loss`."""
        if self.words is None:
            return answer_loss(logits, targets)
        labels = torch.tensor([e.label for e in examples], device=logits.device)
        return label_loss(logits, self.words, labels)

    def tokens(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """Of each of A tokens, `[A]` float32, from logits `[A, V]`."""
        if self.words is None:
            return F.cross_entropy(logits.float(), torch.tensor(tokens, device=logits.device), reduction="none")
        columns = torch.tensor(self.words, device=logits.device)
        labels = torch.tensor([self.words.index(token) for token in tokens], device=logits.device)
        return F.cross_entropy(logits[:, columns].float(), labels, reduction="none")


class Objective:
    """The loss over a step's rows.

    Args:
        forward: carries them through the backbone.
        losses: of each task.
        more: what is added to the loss, a scalar from the answers to the rows; None where nothing is.
    """

    def __init__(
        self,
        forward: Forward,
        losses: Sequence[AnswerLoss],
        more: Callable[[Answers, Sequence[Row]], Tensor] | None = None,
    ) -> None:
        self._forward, self._losses, self._more = forward, losses, more

    def __call__(self, parametrization: Parametrization, rows: Sequence[Row]) -> Tensor:
        """Mean over the rows, a scalar, float32.

        Where a prompt asks about tokens of its own, it is the weighted mean of that (weight 1) and of each of these.
        """
        tasks = sorted({task for task, _ in rows})
        asked = [parametrization.asked(task) for task in tasks]
        fillings = [
            Filling(parametrization(task), asked=tuple(a.behind for a in asks))
            for task, asks in zip(tasks, asked, strict=True)
        ]
        which = [tasks.index(task) for task, _ in rows]
        answers = self._forward.answers([example for _, example in rows], fillings, which)
        assert answers.logits is not None, "the model has an LM head, or its task would not have been begun"
        total = torch.zeros((), device=answers.states.device)
        for k, task in enumerate(tasks):
            own = [i for i, other in enumerate(which) if other == k]
            loss = self._losses[task]
            logits, targets = (
                (answers.logits, answers.targets)
                if len(own) == len(rows)
                else (
                    answers.logits[own],
                    answers.targets[own],
                )
            )
            mean, share = loss.rows(logits, targets, [rows[i][1] for i in own]), len(own) / len(rows)
            if asked[k]:
                weights = torch.tensor([a.weight for a in asked[k]], device=mean.device)
                each = loss.tokens(answers.asked[k], [a.token for a in asked[k]])
                mean = (mean + (weights * each).sum()) / (1 + weights.sum())
            total = total + share * mean
        return total if self._more is None else total + self._more(answers, rows)
