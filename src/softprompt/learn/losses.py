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
from softprompt.run.loss import among_read, answer_loss, label_loss, likeness_loss, odds_loss, span_loss
from softprompt.run.score import means, odds
from softprompt.text.batch import IGNORED
from softprompt.text.examples import Example
from softprompt.text.task import Task
from softprompt.text.verbalizer import Verbalizer


class Loss(ABC):
    """The loss over rows of one task."""

    IN_WORDS: ClassVar[bool] = True
    """Whether it looks at logits, and not at states alone."""

    @abstractmethod
    def rows(self, answers: Answers, examples: Sequence[Example], head: Head | None) -> Tensor:
        """Mean over the rows, a scalar, float32.

        Args:
            answers: to these rows.
            examples: the rows.
            head: the trained head, where the task has one.
        """

    @abstractmethod
    def states(self, answers: Answers, examples: Sequence[Example]) -> Tensor:
        """`[N, D]` float32, what of the states a teacher's are compared with; arguments as in `rows`."""

    @abstractmethod
    def choices(self, answers: Answers, head: Head | None) -> Tensor | None:
        """`[N, C]` float32: the log-probabilities of N choices among C, which a teacher's are compared with.

        Where some are among fewer, what is none of theirs has a log-probability as low as a number can be. None where
        an answer is no choice at all.
        """

    def tokens(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """Of each of A tokens of the prompt itself, `[A]` float32, from logits `[A, V]`."""
        return F.cross_entropy(logits.float(), torch.tensor(tokens, device=logits.device), reduction="none")


@dataclass(frozen=True)
class AnswerLoss(Loss):
    """Cross-entropy of answers in words.

    Attributes:
        words: the first token of each label word, where the loss is among these alone; None for the whole vocabulary.
    """

    words: tuple[int, ...] | None = None

    def states(self, answers: Answers, examples: Sequence[Example]) -> Tensor:
        return answers.states[answers.targets != IGNORED].float()

    def choices(self, answers: Answers, head: Head | None) -> Tensor:
        """Of each token of an answer."""
        logits = _logits(answers)[answers.targets != IGNORED]
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

    def states(self, answers: Answers, examples: Sequence[Example]) -> Tensor:
        return answers.states[:, -1].float()

    def choices(self, answers: Answers, head: Head | None) -> Tensor:
        """Yes or no, of each label of each row."""
        found = odds(_logits(answers), self.verbalizer).flatten()
        return torch.stack([F.logsigmoid(found), F.logsigmoid(-found)], dim=-1)


@dataclass(frozen=True)
class LabelHeadLoss(Loss):
    """Cross-entropy among a head's outputs: of each row's label, or of each word's.

    Attributes:
        one_a_row: whether it is each row's.
    """

    IN_WORDS: ClassVar[bool] = False

    one_a_row: bool

    def states(self, answers: Answers, examples: Sequence[Example]) -> Tensor:
        return self._read(answers).float()

    def choices(self, answers: Answers, head: Head | None) -> Tensor:
        """Of each row's label, or of each word's."""
        assert head is not None, "the task has one"
        return head.log_probabilities(self._read(answers))

    def _read(self, answers: Answers) -> Tensor:
        return answers.states[:, -1] if self.one_a_row else answers.states[answers.targets != IGNORED]

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

    def states(self, answers: Answers, examples: Sequence[Example]) -> Tensor:
        return answers.states[answers.targets != IGNORED].float()

    def choices(self, answers: Answers, head: Head | None) -> Tensor:
        """Of where each row's answer begins, and of where it ends, among the tokens that are read."""
        assert head is not None, "the task has one"
        among = among_read(head(answers.states), answers.targets)
        # Beside tasks that read more, rows are padded to these, and a teacher's maybe to others.
        among = among[:, (answers.targets != IGNORED).any(dim=0)]
        return among.log_softmax(dim=1).transpose(1, 2).flatten(0, 1)


class LikenessLoss(Loss):
    """Rows that have something in common attract each other."""

    IN_WORDS: ClassVar[bool] = False

    def rows(self, answers: Answers, examples: Sequence[Example], head: Head | None) -> Tensor:
        return likeness_loss(means(answers, examples), _labels(answers, examples))

    def states(self, answers: Answers, examples: Sequence[Example]) -> Tensor:
        """Each row's vector: templates of another length read as many states as they have tokens."""
        return means(answers, examples)

    def choices(self, answers: Answers, head: Head | None) -> None:
        return None


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
