"""What teachers add to the loss of several tasks (Wang et al. 2023, arXiv 2303.02861, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.learn.losses import Loss
from softprompt.learn.objective import Row
from softprompt.prompts.method import Parametrization
from softprompt.run.forward import Answers, Filling, Forward
from softprompt.saved import SavedPrompt
from softprompt.text.examples import Example


class Teachers:
    """The distance of a batch's answers to those that a teacher prompt for each task gives to the same rows.

    Per task `KL(teacher || student)`, the mean over all that is chosen in its answers, plus the mean squared difference
    of the last hidden states there; the sum is weighted by each task's share of the rows, and by `weight`.

    The paper's student and teacher are a T5: its distributions are over the vocabulary at the decoder's positions, and
    its hidden states are the decoder's. Here, too, they are those of the answer, in whatever kind of model. Deviations:
    what is chosen is what the loss of a task, and so its teacher's training, is about; see `Loss.choices`. Where that
    is among the label words alone, so is the distribution; where several labels apply, it is yes or no for each; of a
    head it is over labels, or over the tokens where an answer begins, and ends. A vector is no choice: what is compared
    of feature extraction is the mean squared difference alone, of the rows' vectors.

    Args:
        forward: carries rows through the backbone.
        prompts: for each task its teacher.
        examples: for each task, by the student's example of a row, its teacher's: of other virtual tokens and maybe
            another template, with the same answer.
        losses: of each task; they say what the distribution is over.
        weight: of the sum.
    """

    def __init__(
        self,
        forward: Forward,
        prompts: Sequence[SavedPrompt],
        examples: Sequence[Mapping[Example, Example]],
        losses: Sequence[Loss],
        weight: float,
    ) -> None:
        # Compiled: what stands in front of a teacher's rows stays as it is for the whole run.
        self._fillings = [Filling(prompt.values, {}) for prompt in prompts]
        self._heads = [prompt.head for prompt in prompts]
        self._forward, self._examples, self._losses, self._weight = forward, examples, losses, weight

    def __call__(self, student: Answers, rows: Sequence[Row], parametrization: Parametrization) -> Tensor:
        """A scalar, float32, with gradients to the student alone."""
        tasks = sorted({task for task, _ in rows})
        asked = [self._examples[task][example] for task, example in rows]
        head = any(self._losses[task].IN_WORDS for task in tasks)
        with torch.no_grad():
            teacher = self._forward.answers(asked, self._fillings, [task for task, _ in rows], head=head)
        total = torch.zeros((), device=student.states.device)
        for task in tasks:
            own = [i for i, (other, _) in enumerate(rows) if other == task]
            loss, mine, theirs = self._losses[task], student.of(own), teacher.of(own)
            with torch.no_grad():
                states = loss.states(theirs, [asked[i] for i in own])
                taught = loss.choices(theirs, self._heads[task])
            if not len(states):  # of all these rows the answers were cut away
                continue
            distance = F.mse_loss(loss.states(mine, [rows[i][1] for i in own]), states)
            learned = loss.choices(mine, parametrization.head_for(task))
            if learned is not None and taught is not None:
                distance = F.kl_div(learned, taught, reduction="batchmean", log_target=True) + distance
            total = total + len(own) / len(rows) * distance
        return self._weight * total
