"""The loss of each kind of task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.learn.settings import Settings
from softprompt.prompts.head import Head
from softprompt.run.forward import Answers
from softprompt.run.loss import answer_loss, label_loss, likeness_loss, odds_loss, span_loss
from softprompt.run.score import means, odds
from softprompt.text.batch import IGNORED
from softprompt.text.examples import Example
from softprompt.text.task import Task
from softprompt.text.verbalizer import Verbalizer


class Loss(ABC):
    """The loss over rows of one task."""

    IN_WORDS: ClassVar[bool] = True
    """Whether it looks at logits, and not at states alone."""

    TAUGHT: ClassVar[bool] = False
    """Whether its answers are a distribution at each of some positions, which a teacher's can be compared with."""

    @abstractmethod
    def rows(self, answers: Answers, examples: Sequence[Example], head: Head | None) -> Tensor:
        """Mean over the rows, a scalar, float32.

        Args:
            answers: to these rows.
            examples: the rows.
            head: the trained head, where the task has one.
        """

    def answered(self, answers: Answers) -> Tensor:
        """`[B, S]` bool, where something is answered."""
        return answers.targets != IGNORED

    def log_probabilities(self, answers: Answers, answered: Tensor, head: Head | None) -> Tensor:
        """`[N, C]` float32 of the N positions where something is answered; of losses that are `TAUGHT`."""
        raise NotImplementedError

    def tokens(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """Of each of A tokens of the prompt itself, `[A]` float32, from logits `[A, V]`."""
        return F.cross_entropy(logits.float(), torch.tensor(tokens, device=logits.device), reduction="none")


@dataclass(frozen=True)
class AnswerLoss(Loss):
    """Cross-entropy of answers in words.

    Attributes:
        words: the first token of each label word, where the loss is among these alone; None for the whole vocabulary.
    """

    TAUGHT: ClassVar[bool] = True

    words: tuple[int, ...] | None = None

    def log_probabilities(self, answers: Answers, answered: Tensor, head: Head | None) -> Tensor:
        logits = _logits(answers)[answered]
        if self.words is not None:
            logits = logits[:, torch.tensor(self.words, device=logits.device)]
        return logits.float().log_softmax(dim=-1)

    def rows(self, answers: Answers, examples: Sequence[Example], head: Head | None) -> Tensor:
        if self.words is None:
            return answer_loss(_logits(answers), answers.targets)
        return label_loss(_logits(answers), self.words, _labels(answers, examples))

    def tokens(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        if self.words is None:
            return super().tokens(logits, tokens)
        columns = torch.tensor(self.words, device=logits.device)
        labels = torch.tensor([self.words.index(token) for token in tokens], device=logits.device)
        return F.cross_entropy(logits[:, columns].float(), labels, reduction="none")


@dataclass(frozen=True)
class MultiLabelLoss(Loss):
    """Cross-entropy of yes or no, for each label's word against the word for none."""

    verbalizer: Verbalizer

    def rows(self, answers: Answers, examples: Sequence[Example], head: Head | None) -> Tensor:
        found = odds(_logits(answers), self.verbalizer)
        applies = torch.zeros(found.shape, dtype=torch.bool, device=found.device)
        for row, example in zip(applies, examples, strict=True):
            row[list(example.labels)] = True
        return odds_loss(found, applies)


@dataclass(frozen=True)
class LabelHeadLoss(Loss):
    """Cross-entropy among a head's outputs: of each row's label, or of each word's.

    Attributes:
        one_a_row: whether it is each row's.
    """

    IN_WORDS: ClassVar[bool] = False
    TAUGHT: ClassVar[bool] = True

    one_a_row: bool

    def answered(self, answers: Answers) -> Tensor:
        if not self.one_a_row:
            return super().answered(answers)
        found = torch.zeros_like(answers.targets, dtype=torch.bool)
        found[:, -1] = True
        return found

    def log_probabilities(self, answers: Answers, answered: Tensor, head: Head | None) -> Tensor:
        assert head is not None, "the task has one"
        return head.log_probabilities(answers.states[answered])

    def rows(self, answers: Answers, examples: Sequence[Example], head: Head | None) -> Tensor:
        assert head is not None, "the task has one"
        outputs, targets = head(answers.states), answers.targets
        if self.one_a_row:
            outputs, targets = outputs[:, -1:], _labels(answers, examples)[:, None]
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


class SpanLoss(Loss):
    """Cross-entropy of where an answer begins and ends."""

    IN_WORDS: ClassVar[bool] = False

    def rows(self, answers: Answers, examples: Sequence[Example], head: Head | None) -> Tensor:
        assert head is not None, "the task has one"
        return span_loss(head(answers.states), answers.targets)


class LikenessLoss(Loss):
    """Rows that have something in common attract each other."""

    IN_WORDS: ClassVar[bool] = False

    def rows(self, answers: Answers, examples: Sequence[Example], head: Head | None) -> Tensor:
        return likeness_loss(means(answers, examples), _labels(answers, examples))


def loss_for(settings: Settings, task: Task, verbalizer: Verbalizer | None) -> Loss:
    """The loss that the settings ask for, as far as the task allows it."""
    match task.kind:
        case "multi-label":
            assert verbalizer is not None, "it has label words"
            return MultiLabelLoss(verbalizer)
        case "sequence-classification" | "token-classification":
            return LabelHeadLoss(one_a_row=task.classifies)
        case "question-answering":
            return SpanLoss()
        case "feature-extraction":
            return LikenessLoss()
    if settings.loss == "vocabulary" or verbalizer is None or not verbalizer.by_first_token:
        return AnswerLoss()
    return AnswerLoss(tuple(word[0] for word in verbalizer.words))


def _logits(answers: Answers) -> Tensor:
    assert answers.logits is not None, "the model has an LM head, or its task would not have been begun"
    return answers.logits


def _labels(answers: Answers, examples: Sequence[Example]) -> Tensor:
    return torch.tensor([e.label for e in examples], device=answers.states.device)
