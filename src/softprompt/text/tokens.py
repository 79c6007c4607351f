"""Tokens of a piece of text that stands inside a longer one."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

# A piece is tokenized behind this and the mark's own tokens are dropped: some tokenizers put a blank before whatever
# they are given, which is wrong for a piece that does not begin the text.
_MARKS = ("\n", "!", "#")


class PieceTokenizer:
    """Tokenizes the pieces of a template one by one, so that an anchor has the same tokens in every row.

    Attributes:
        start: tokens the tokenizer puts before every text (a beginning-of-text token, say).
        end: the end-of-text token, or None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pads = self._raw("a") != self._raw("\na")[len(self._raw("\n")) :]
        special = tokenizer("a", add_special_tokens=True)["input_ids"]
        self.start: tuple[int, ...] = tuple(special[: special.index(self._raw("a")[0])])
        self.end: int | None = tokenizer.eos_token_id

    def _raw(self, text: str, *, plain: bool = False) -> list[int]:
        # `verbose=False`: a text longer than the model is cut later, by field.
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)["input_ids"]

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        """Tokens of an anchor or a label word, in which the name of a special token is that token.

        Args:
            text: as it stands in the template.
            opens: whether the text begins with it; else the tokens are those it has inside a longer text.
        """
        return self._piece(text, opens, plain=False)

    def encode_data(self, text: str, *, opens: bool = False) -> list[int]:
        """Tokens of a row's text, in which the name of a special token is only text. Arguments as in `encode`."""
        # Always so: a tokenizer has special tokens that `all_special_tokens` does not name.
        return self._piece(text, opens, plain=True)

    def _piece(self, text: str, opens: bool, *, plain: bool) -> list[int]:
        if not text:
            return []
        if self._pads and not opens:
            for mark in _MARKS:
                alone, both = self._raw(mark, plain=plain), self._raw(mark + text, plain=plain)
                if both[: len(alone)] == alone:
                    return both[len(alone) :]
        return self._raw(text, plain=plain)

    def decode(self, ids: list[int], *, opens: bool = False) -> str:
        """Text of tokens; special tokens are left out. `opens` as in `encode`."""
        # What some tokenizers take off the beginning of a text they then take off the mark.
        mark = [] if opens else self._raw("!")
        before, both = (self._tokenizer.decode(part, skip_special_tokens=True) for part in (mark, mark + ids))
        return both[len(before) :]
