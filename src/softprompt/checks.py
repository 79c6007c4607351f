"""Checks of single settings, wherever they are given."""

from __future__ import annotations

from softprompt.errors import SettingsError


def check_whole(name: str, value: object, least: int = 1) -> None:
    """
    Raises:
        SettingsError: the setting is no whole number of `least` or more.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingsError(f"{name} is {value!r}", where=name, instead=f"Give a whole number of {least} or more.")


def check_flag(name: str, value: object) -> None:
    """
    Raises:
        SettingsError: the setting is neither true nor false.
    """
    if not isinstance(value, bool):
        raise SettingsError(f"{name} is {value!r}", where=name, instead="Give true or false.")
