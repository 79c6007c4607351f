"""An answer that is being written: its tokens become text, which ends at a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from softprompt.answer.sampling import Token

Finish = Literal["stop", "length"]
"""Why an answer ended: by the model's own end or a stop string, or because it had its number of tokens."""

_UNFINISHED = "\ufffd"
"""What the first bytes of a character are decoded to while the others are missing."""


@dataclass
class Written:
    """An answer, as far as it is written.

    Attributes:
        text: what can no longer change; what might become a stop string waits.
        tokens: all of them, the end-of-text token included.
        finish: None while it is being written.
    """

    decode: Callable[[Sequence[int]], str] = field(repr=False)
    stop: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    most: int = 32
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, token: Token) -> str:
        """Write a token; the text that this makes certain."""
        self.tokens.append(token)
        if token.id in self.ends:
            self.finish = "stop"
        elif len(self.tokens) >= self.most:
            self.finish = "length"
        ids = [t.id for t in self.tokens if t.id not in self.ends]
        whole = self.decode(ids)
        # None begins in what is certain.
        found = [at for at in (whole.find(s, len(self.text)) for s in self.stop) if at >= 0]
        if found:
            whole, self.finish = whole[: min(found)], "stop"
        elif self.finish is None:
            whole = whole[: _certain(whole, self.stop)]
        if not whole.startswith(self.text):
            return ""
        new = whole[len(self.text) :]
        self.text = whole
        return new


def _certain(text: str, stop: Sequence[str]) -> int:
    """How many characters stay, whatever is written next."""
    length = len(text)
    while length and text[length - 1] == _UNFINISHED:
        length -= 1
    sizes = (size for s in stop for size in range(1, min(len(s), length + 1)) if text.endswith(s[:size], 0, length))
    return length - max(sizes, default=0)
