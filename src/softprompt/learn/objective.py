"""What a training run makes small: the loss over a step's rows, of one task or of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from softprompt.learn.losses import Loss
from softprompt.prompts.method import Parametrization
from softprompt.run.forward import Answers, Filling, Forward
from softprompt.run.ranges import Part, within
from softprompt.text.examples import Example

Row = tuple[int, Example]
"""The number of a task, and an example of it."""


class Objective:
    """The loss over a step's rows.

    Args:
        forward: carries them through the backbone.
        losses: of each task.
        more: what is added to the loss, a scalar, from the answers, the rows and the parameters; None where nothing is.
    """

    def __init__(
        self,
        forward: Forward,
        losses: Sequence[Loss],
        more: Callable[[Answers, Sequence[Row], Parametrization], Tensor] | None = None,
    ) -> None:
        self.forward, self._losses, self._more = forward, losses, more

    def __call__(self, parametrization: Parametrization, rows: Sequence[Row]) -> Tensor:
        """Mean over the rows, a scalar, float32.

        Where a prompt asks about tokens of its own, it is the weighted mean of that (weight 1) and of each of these.
        """
        tasks = sorted({task for task, _ in rows})
        asked = [parametrization.asked(task) for task in tasks]
        with within(Part.PROMPT):
            fillings = [
                Filling(parametrization(task), asked=tuple(a.behind for a in asks))
                for task, asks in zip(tasks, asked, strict=True)
            ]
        which = [tasks.index(task) for task, _ in rows]
        examples = [example for _, example in rows]
        head = any(self._losses[task].IN_WORDS for task in tasks)
        answers = self.forward.answers(examples, fillings, which, head=head)
        total = torch.zeros((), device=answers.states.device)
        for k, task in enumerate(tasks):
            own = [i for i, other in enumerate(which) if other == k]
            loss, share = self._losses[task], len(own) / len(rows)
            mean = loss.rows(answers.of(own), [examples[i] for i in own], parametrization.head_for(task))
            if asked[k]:
                weights = torch.tensor([a.weight for a in asked[k]], device=mean.device)
                each = loss.tokens(answers.asked[k], [a.token for a in asked[k]])
                mean = (mean + (weights * each).sum()) / (1 + weights.sum())
            total = total + share * mean
        return total if self._more is None else total + self._more(answers, rows, parametrization)
