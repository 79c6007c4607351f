"""What teachers add to the loss of several tasks (Wang et al. 2023, arXiv 2303.02861, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.learn.objective import AnswerLoss, Row
from softprompt.prompts.prompt import Values
from softprompt.run.forward import Answers, Filling, Forward
from softprompt.text.batch import IGNORED
from softprompt.text.examples import Example


class Teachers:
    """The distance of a batch's answers to those that a teacher prompt for each task gives to the same rows.

    Per task `KL(teacher || student)`, the mean over its answers' positions, plus the mean squared difference of the
    last hidden states there; the sum is weighted by each task's share of the rows, and by `weight`.

    The paper's student and teacher are a T5: its distributions are over the vocabulary at the decoder's positions, and
    its hidden states are the decoder's. Here, too, they are those of the answer, in whatever kind of model. Deviation:
    where the loss of a task is among its label words alone, so is the distribution; the rest of the vocabulary is then
    nothing that its teacher was trained on.

    Args:
        forward: carries rows through the backbone.
        prompts: for each task its teacher's values.
        examples: for each task, by the student's example of a row, its teacher's: of other virtual tokens and maybe
            another template, with the same answer.
        losses: of each task; they say what the distribution is over.
        weight: of the sum.
    """

    def __init__(
        self,
        forward: Forward,
        prompts: Sequence[Values],
        examples: Sequence[Mapping[Example, Example]],
        losses: Sequence[AnswerLoss],
        weight: float,
    ) -> None:
        # Compiled: what stands in front of a teacher's rows stays as it is for the whole run.
        self._fillings = [Filling(values, {}) for values in prompts]
        self._forward, self._examples, self._losses, self._weight = forward, examples, losses, weight

    def __call__(self, student: Answers, rows: Sequence[Row]) -> Tensor:
        """A scalar, float32, with gradients to the student alone."""
        with torch.no_grad():
            asked = [self._examples[task][example] for task, example in rows]
            teacher = self._forward.answers(asked, self._fillings, [task for task, _ in rows])
        total = torch.zeros((), device=student.states.device)
        for task in sorted({task for task, _ in rows}):
            own = [i for i, (other, _) in enumerate(rows) if other == task]
            answered = student.targets[own] != IGNORED
            learned, taught = (_log_probabilities(a, own, answered, self._losses[task]) for a in (student, teacher))
            divergence = F.kl_div(learned, taught, reduction="batchmean", log_target=True)
            states = F.mse_loss(student.states[own][answered].float(), teacher.states[own][answered].float())
            total = total + len(own) / len(rows) * (divergence + states)
        return self._weight * total


def _log_probabilities(answers: Answers, rows: Sequence[int], answered: Tensor, loss: AnswerLoss) -> Tensor:
    """`[N, V]`, or `[N, C]` among label words, of the N positions where these rows answer; float32."""
    assert answers.logits is not None, "the model has an LM head, or its task would not have been begun"
    logits = answers.logits[rows][answered]
    if loss.words is not None:
        logits = logits[:, torch.tensor(loss.words, device=logits.device)]
    return logits.float().log_softmax(dim=-1)
