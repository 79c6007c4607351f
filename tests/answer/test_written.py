from __future__ import annotations

import pytest

from softprompt.answer.sampling import Token
from softprompt.answer.written import Written

END = 0


def spelled(ids) -> str:
    """Each id is a byte."""
    return bytes(ids).decode(errors="replace")


def write(text: str, stop=(), most: int = 100) -> tuple[Written, list[str]]:
    written = Written(spelled, tuple(stop), frozenset([END]), most)
    told = []
    for byte in (*text.encode(), END):
        told.append(written.add(Token(byte)))
        if written.finish:
            break
    return written, told


def test_text_is_told_as_it_is_written():
    written, told = write("one two")
    assert told == [*"one two", ""]
    assert written.text == "one two"
    assert written.finish == "stop"
    assert len(written.tokens) == 8


def test_a_character_is_told_when_all_its_bytes_are_there():
    written, told = write("가나")
    assert [t for t in told if t] == ["가", "나"]
    assert written.text == "가나"


def test_half_a_character_is_told_at_the_end_as_what_it_is():
    written, told = write("가", most=2)
    assert written.finish == "length"
    assert "".join(told) == written.text == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "left"),
    [
        ("one. two", ["."], "one"),
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one\ntwo", ["\n\n"], "one\ntwo"),
        ("ababac", ["abac"], "ab"),
        ("xxcab", ["ab", "cab"], "xx"),
        ("one two", ["two", "one"], ""),
        ("끝이다", ["이"], "끝"),
    ],
)
def test_text_ends_before_a_stop_string_and_nothing_of_it_is_told(text, stop, left):
    written, told = write(text, stop)
    assert written.text == "".join(told) == left
    assert written.finish == "stop"


def test_what_turns_out_to_be_no_stop_string_is_told():
    _, told = write("abx", ["abc"])
    assert told == ["", "", "abx", ""]


def test_it_ends_when_it_has_its_tokens():
    written, _ = write("one two", most=3)
    assert (written.text, written.finish) == ("one", "length")
