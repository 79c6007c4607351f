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

    def _raw(self, text: str) -> list[int]:
        # `verbose=False`: a text longer than the model is cut later, by field.
        return self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def encode(self, text: str) -> list[int]:
        """Tokens of `text` as they would be inside a longer text; special tokens are read as such in anchors only."""
        if not text:
            return []
        if self._pads:
            for mark in _MARKS:
                alone, both = self._raw(mark), self._raw(mark + text)
                if both[: len(alone)] == alone:
                    return both[len(alone) :]
        return self._raw(text)

    def encode_data(self, text: str) -> list[int]:
        """Tokens of a row's text, in which the name of a special token is only text."""
        if not text:
            return []
        specials = self._tokenizer.all_special_tokens
        if not any(token in text for token in specials):
            return self.encode(text)
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
