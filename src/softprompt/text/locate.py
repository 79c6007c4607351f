"""Where in a text an answer stands, be it written in another Unicode form: composed (NFC) or decomposed (NFD)."""

from __future__ import annotations

from unicodedata import combining, is_normalized, normalize


def locate(content: str, answer: str, start: int | None = None) -> tuple[int, int] | None:
    """The first character of an answer in a text, and the one behind its last; None where it does not stand there.

    Args:
        content: the text.
        answer: as it stands there, or canonically equivalent to that. Not empty.
        start: where it must begin; None for the first place.
    """
    found = content.find(answer) if start is None else start
    if found >= 0 and content[found : found + len(answer)] == answer:
        return found, found + len(answer)
    if all(is_normalized(form, text) for form in ("NFC", "NFD") for text in (content, answer)):
        return None  # there is one form of both
    letters, places = _decomposed(content)
    wanted, _ = _decomposed(answer)
    at = letters.find(wanted)
    while at >= 0:
        first, last = places[at], places[at + len(wanted) - 1] + 1
        # A part of a character is none: the jamo that a syllable begins with, a letter without its accent.
        whole = normalize("NFD", content[first:last]) == wanted and not combining(content[last : last + 1] or "x")
        if whole and start in (None, first):
            return first, last
        at = letters.find(wanted, at + 1)
    return None


def _decomposed(text: str) -> tuple[str, list[int]]:
    """The text in form NFD, and for each of its characters which one of `text` it comes from."""
    parts, run = [], 0
    for place, character in enumerate(text):
        for part in normalize("NFD", character):
            # Marks behind a letter have an order of their own; nothing is moved over a letter.
            run += combining(part) == 0
            parts.append((run, combining(part), part, place))
    parts.sort(key=lambda p: p[:2])
    return "".join(part for _, _, part, _ in parts), [place for *_, place in parts]
