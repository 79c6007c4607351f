from __future__ import annotations

import pytest

from softprompt.checks import check_flag, check_whole
from softprompt.errors import SettingsError


@pytest.mark.parametrize(
    ("value", "least", "refused"),
    [(1, 1, False), (0, 0, False), (0, 1, True), (-1, 0, True), (True, 1, True), (2.0, 1, True), ("3", 1, True)],
)
def test_a_whole_number_is_one_and_large_enough(value, least, refused):
    if not refused:
        return check_whole("tokens", value, least)
    with pytest.raises(SettingsError, match=rf"tokens is {value!r}. Give a whole number of {least} or more") as error:
        check_whole("tokens", value, least)
    assert error.value.where == "tokens"


def test_a_flag_is_true_or_false():
    check_flag("sink", False)
    with pytest.raises(SettingsError, match="sink is 1. Give true or false"):
        check_flag("sink", 1)
