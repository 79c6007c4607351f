from __future__ import annotations

import pytest

from softprompt.checks import check_flag, check_whole
from softprompt.errors import SettingsError


@pytest.mark.parametrize(("value", "least"), [(1, 1), (0, 0), (7, 1)])
def test_a_whole_number_that_is_large_enough_is_taken(value, least):
    check_whole("tokens", value, least)


@pytest.mark.parametrize(("value", "least"), [(0, 1), (-1, 0), (True, 1), (2.0, 1), ("3", 1), (None, 0)])
def test_anything_else_is_refused_by_name(value, least):
    with pytest.raises(SettingsError, match=rf"tokens is {value!r}\. Give a whole number of {least} or more"):
        check_whole("tokens", value, least)


def test_a_flag_is_true_or_false():
    check_flag("sink", False)
    with pytest.raises(SettingsError, match=r"sink is 1\. Give true or false"):
        check_flag("sink", 1)
