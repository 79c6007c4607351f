"""Tokens of a piece of text that stands inside a longer one."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

# A piece is tokenized behind this and the mark's own tokens are dropped: some tokenizers put a blank before whatever
# they are given, which is wrong for a piece that does not begin the text.
_MARKS = ("\n", "!", "#")

Spans = list[tuple[int, int]]
"""For each token where its text begins and ends."""


class PieceTokenizer:
    """Tokenizes the pieces of a template one by one, so that an anchor has the same tokens in every row.

    Attributes:
        start: tokens the tokenizer puts before every text (a beginning-of-text token, `[CLS]`).
        stop: tokens it puts behind every text (`[SEP]`, `</s>`).
        end: the end-of-text token, or None.
        mask: the token in whose place an encoder answers, or None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._pads = self._raw("a") != self._raw("\na")[len(self._raw("\n")) :]
        special, plain = tokenizer("a", add_special_tokens=True)["input_ids"], self._raw("a")
        first = special.index(plain[0])
        self.start: tuple[int, ...] = tuple(special[:first])
        self.stop: tuple[int, ...] = tuple(special[first + len(plain) :])
        self.end: int | None = tokenizer.eos_token_id
        self.mask: int | None = tokenizer.mask_token_id

    def _raw(self, text: str, *, plain: bool = False) -> list[int]:
        return self._encoded(text, plain=plain)[0]

    def _encoded(self, text: str, *, plain: bool, spans: bool = False) -> tuple[list[int], Spans]:
        # `verbose=False`: a text longer than the model is cut later, by field.
        made = self._tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=plain,
            return_offsets_mapping=spans,
            verbose=False,
        )
        return made["input_ids"], made["offset_mapping"] if spans else []

    def encode(self, text: str, *, opens: bool = False) -> list[int]:
        """Tokens of an anchor or a label word, in which the name of a special token is that token.

        Args:
            text: as it stands in the template.
            opens: whether the text begins with it; else the tokens are those it has inside a longer text.
        """
        return self._piece(text, opens, plain=False)[0]

    def encode_data(self, text: str, *, opens: bool = False) -> list[int]:
        """Tokens of a row's text, in which the name of a special token is only text. Arguments as in `encode`."""
        # Always so: a tokenizer has special tokens that `all_special_tokens` does not name.
        return self._piece(text, opens, plain=True)[0]

    def encode_data_with_spans(self, text: str, *, opens: bool = False) -> tuple[list[int], Spans]:
        """As `encode_data`, and for each token the part of `text` it was made from; of a fast tokenizer only."""
        return self._piece(text, opens, plain=True, spans=True)

    def _piece(self, text: str, opens: bool, *, plain: bool, spans: bool = False) -> tuple[list[int], Spans]:
        if not text:
            return [], []
        if self._pads and not opens:
            for mark in _MARKS:
                alone = self._raw(mark, plain=plain)
                both, places = self._encoded(mark + text, plain=plain, spans=spans)
                if both[: len(alone)] == alone:
                    behind = [(max(0, a - len(mark)), max(0, b - len(mark))) for a, b in places[len(alone) :]]
                    return both[len(alone) :], behind
        return self._encoded(text, plain=plain, spans=spans)

    def decode(self, ids: list[int], *, opens: bool = False) -> str:
        """Text of tokens; special tokens are left out. `opens` as in `encode`."""
        # What some tokenizers take off the beginning of a text they then take off the mark.
        mark = [] if opens else self._raw("!")
        before, both = (self._tokenizer.decode(part, skip_special_tokens=True) for part in (mark, mark + ids))
        return both[len(before) :]
