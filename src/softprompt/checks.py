"""Checks of single settings and arguments, wherever they are given."""

from __future__ import annotations

from typing import Any

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


def check_kind(name: str, value: object, kinds: tuple[type, ...], instead: str) -> None:
    """See that a value is of one of some kinds.

    Raises:
        SettingsError: it is something else.
    """
    if not isinstance(value, kinds):
        raise SettingsError(f"{name} is {shown(value)}", where=name, instead=instead)


def shown(value: Any) -> str:
    """What a value is, for a message, not too long."""
    what = f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {value!r}"
    return what if len(what) <= 80 else f"{what[:77]}..."
