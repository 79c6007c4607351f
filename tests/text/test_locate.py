"""Where an answer stands, in whatever Unicode form."""

from __future__ import annotations

from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softprompt.text.locate import _decomposed, locate

FORMS = ("NFC", "NFD")
# Letters with one mark and two, in either order; syllables with and without a last consonant; characters of two units.
ALPHABET = "ae ̣́̂é̂ạệ서울한가각Å😀"


@pytest.mark.parametrize("of_content", FORMS)
@pytest.mark.parametrize("of_answer", FORMS)
@pytest.mark.parametrize(
    ("before", "answer", "behind"), [("", "서울의", " 팀"), ("팀은 ", "이겼다", "!"), ("a café, ", "café crème", ".")]
)
def test_an_answer_is_found_in_another_form(of_content, of_answer, before, answer, behind):
    content = normalize(of_content, before + answer + behind)
    first, last = locate(content, normalize(of_answer, answer))
    assert content[first:last] == normalize(of_content, answer)
    assert first == len(normalize(of_content, before))
    assert locate(content, normalize(of_answer, answer), first) == (first, last)
    assert locate(content, normalize(of_answer, answer), first + 1) is None


def test_the_place_that_is_said_is_the_one_that_is_taken():
    content = normalize("NFD", "서울, 서울")
    assert locate(content, "서울") == (0, 5)
    assert locate(content, "서울", 7) == (7, 12)
    assert locate("a won, won", "won", 7) == (7, 10)
    assert locate("a won, won", "won", 6) is None


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("가", "ᄀ"),  # the jamo that the syllable begins with
        (normalize("NFC", "각"), normalize("NFD", "가")),
        (normalize("NFC", "é"), "e"),
        (normalize("NFC", "ệ"), normalize("NFD", "ẹ")),
        ("won", "fell"),
        ("", "서울"),
    ],
)
def test_a_part_of_a_character_is_no_answer(content, answer):
    assert locate(content, answer) is None


def test_of_several_places_the_first_whole_one_is_taken():
    content = normalize("NFC", "각 가")
    assert locate(content, normalize("NFD", "가")) == (2, 3)


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from(ALPHABET), max_size=12))
def test_what_is_decomposed_is_what_unicode_says(text):
    letters, places = _decomposed(text)
    assert letters == normalize("NFD", text)
    assert sorted(set(places)) == list(range(len(text)))


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("서울 각éw"), min_size=1, max_size=12), st.data())
def test_every_part_of_a_text_is_found_in_either_form(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    content = normalize(data.draw(st.sampled_from(FORMS)), text)
    answer = normalize(data.draw(st.sampled_from(FORMS)), text[start:end])
    first, last = locate(content, answer)
    assert normalize("NFC", content[first:last]) == normalize("NFC", answer)
