"""Label words: how each label is written, and how the model's answer is read as one of them."""

from __future__ import annotations

from itertools import combinations

from softprompt.errors import LabelError
from softprompt.text.task import Task
from softprompt.text.template import Mask
from softprompt.text.tokens import PieceTokenizer


class Verbalizer:
    """The label words of a task as tokens.

    Where the first tokens differ, the first token alone tells the labels apart: one position is scored per row and no
    answer token is ever run through the model. Elsewhere whole words are scored.

    Attributes:
        labels: `[C]` label values.
        words: `[C]` token ids of each label word.
        none: token ids of the word for no label, of a multi-label task; else empty.
        by_first_token: whether the first tokens differ.
    """

    def __init__(self, task: Task, tokenizer: PieceTokenizer, *, answer_opens: bool = False) -> None:
        """
        Args:
            task: one that is answered by label words.
            tokenizer: of the model.
            answer_opens: whether the answer begins a text of its own.

        Raises:
            LabelError: two words have the same tokens, or one is the beginning of another; or one has several tokens
                where a single one is asked for.
        """
        self.labels = task.labels
        target = task.template.target
        assert target is not None, "a task that is answered in words says where"
        opens, blank = answer_opens or task.template.opening is target, "" if answer_opens else target.blank

        def encode(word: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(blank + word, opens=opens))

        self.words = tuple(encode(word) for word in task.words)
        self.none = encode(task.none) if task.kind == "multi-label" else ()
        asked = [*zip(task.words, self.words, task.labels, strict=True)]
        if self.none:
            asked.append((task.none, self.none, "none"))
        for i, (word, a, label) in enumerate(asked):
            for j, (other, b, another) in enumerate(asked):
                if i != j and b[: len(a)] == a:
                    how = "have the same tokens" if a == b else "cannot be told apart: one begins the other"
                    raise LabelError(
                        f"label words {word!r} and {other!r} {how}",
                        where=f"labels {label!r} and {another!r}",
                        instead='Give other words: labels={"label": "word", ...}.',
                    )
        self.by_first_token = len({word[0] for _, word, _ in asked}) == len(asked)
        self._check_length(asked, isinstance(target, Mask))

    def _check_length(self, asked: list[tuple[str, tuple[int, ...], str]], masked: bool) -> None:
        """One {mask} is one token; and of several labels each must be told by one, for they are not alternatives."""
        if self.none and not self.by_first_token:
            pairs = combinations(asked, 2)
            (word, _, label), (other, _, another) = next((x, y) for x, y in pairs if x[1][0] == y[1][0])
            raise LabelError(
                f"label words {word!r} and {other!r} begin with the same token, and that is what tells each of several",
                where=f"labels {label!r} and {another!r}",
                instead='Give other words: labels={"label": "word", ...}, none="...".',
            )
        for word, tokens, label in asked if masked else ():
            if len(tokens) > 1:
                raise LabelError(
                    f"label word {word!r} is {len(tokens)} tokens, and {{mask}} is filled by one",
                    where=f"label {label!r}",
                    instead='Give a word of one token: labels={"label": "word", ...}.',
                )


def label_index(labels: tuple[str, ...], label: str | int, where: str | None = None) -> int:
    """Position of a label value among a task's.

    A whole number that is no label counts them from 0, as class numbers of data sets do; not where any label is a
    number itself, for then it is more likely a slip.

    Raises:
        LabelError: it is not one of them.
    """
    if str(label) in labels:
        return labels.index(str(label))
    counted = not any(name.strip().lstrip("+-").isdecimal() for name in labels)
    if counted and isinstance(label, int) and 0 <= label < len(labels):
        return label
    instead = f"The task's labels are {', '.join(labels)}."
    if counted and str(label).strip().lstrip("+-").isdecimal():
        instead += f" Write one of them, or its number, from 0 to {len(labels) - 1}"
        instead += "." if isinstance(label, int) else ": a number, not text (JSON Lines and Parquet have numbers)."
    raise LabelError(f"unknown label {str(label)[:80]!r}", where=where, instead=instead)
