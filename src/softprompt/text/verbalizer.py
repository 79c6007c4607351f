"""Label words: how each label is written, and how the model's answer is read as one of them."""

from __future__ import annotations

from softprompt.errors import LabelError
from softprompt.text.task import Task
from softprompt.text.tokens import PieceTokenizer


class Verbalizer:
    """The label words of a task as tokens.

    Where the first tokens differ, the first token alone tells the labels apart: one position is scored per row and no
    answer token is ever run through the model. Elsewhere whole words are scored.

    Attributes:
        labels: `[C]` label values.
        words: `[C]` token ids of each label word.
        by_first_token: whether the first tokens differ.
    """

    def __init__(self, task: Task, tokenizer: PieceTokenizer) -> None:
        """
        Raises:
            LabelError: two words have the same tokens, or one is the beginning of another.
        """
        self.labels = task.labels
        target = task.template.target
        opens = task.template.opening is target
        self.words = tuple(tuple(tokenizer.encode(target.blank + word, opens=opens)) for word in task.words)
        for i, a in enumerate(self.words):
            for j, b in enumerate(self.words):
                if i != j and b[: len(a)] == a:
                    how = "have the same tokens" if a == b else "cannot be told apart: one begins the other"
                    raise LabelError(
                        f"label words {task.words[i]!r} and {task.words[j]!r} {how}",
                        where=f"labels {self.labels[i]!r} and {self.labels[j]!r}",
                        instead='Give other words: labels={"label": "word", ...}.',
                    )
        self.by_first_token = len({word[0] for word in self.words}) == len(self.words)

    def index(self, label: object, where: str | None = None) -> int:
        """Position of a label value.

        Raises:
            LabelError: it is not one of the task's.
        """
        try:
            return self.labels.index(str(label))
        except ValueError:
            raise LabelError(
                f"unknown label {str(label)[:80]!r}",
                where=where,
                instead=f"The task's labels are {', '.join(self.labels)}.",
            ) from None
