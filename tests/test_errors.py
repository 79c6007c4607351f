from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from softprompt import errors
from softprompt.errors import DivergenceError, QueueError, RequestError, SoftpromptError, WorkError

CLASSES = {
    name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, SoftpromptError)
}


def made(cls: type[SoftpromptError], *args: str, **kwargs: str) -> SoftpromptError:
    return cls(*args, **kwargs, **({"step": 7} if cls is DivergenceError else {}))


def documented() -> dict[str, tuple[str | None, dict[str, int]]]:
    """Of each class in the module's drawing: what it hangs from, and the statuses written behind it."""
    found: dict[str, tuple[str | None, dict[str, int]]] = {}
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ([ │├└─]*)(\w+Error)\b", line)
        if match is None:
            continue
        depth, name = len(match[1]), match[2]
        while above and above[-1][0] >= depth:
            above.pop()
        statuses = {kind: int(number) for kind, number in re.findall(r"(exit|HTTP) (\d+)", line)}
        found[name] = (above[-1][1] if above else None, statuses)
        above.append((depth, name))
    return found


def test_the_drawing_and_the_classes_are_one_tree():
    parents = {name: cls.__bases__[0].__name__ for name, cls in CLASSES.items()}
    assert {name: parent or "Exception" for name, (parent, _) in documented().items()} == parents


def test_the_statuses_are_those_of_the_drawing():
    drawn = documented()
    for name, cls in CLASSES.items():
        if cls is SoftpromptError:
            continue
        expected: dict[str, int] = {}
        at: str | None = name
        while at is not None:
            parent, statuses = drawn[at]
            expected = statuses | expected
            at = parent
        assert {"exit": cls.exit_status, "HTTP": cls.http_status} == expected, name


def test_whose_fault_it_was_decides_the_status():
    for cls in CLASSES.values():
        if issubclass(cls, RequestError):
            assert (cls.exit_status, cls.http_status // 100) == (2, 4)
        else:
            assert issubclass(cls, WorkError) or cls is SoftpromptError
            # Too many requests are nobody's fault, but it is for who asks to wait.
            assert (cls.exit_status, cls.http_status // 100) == (1, 4 if cls is QueueError else 5)


@pytest.mark.parametrize(
    ("where", "instead", "message"),
    [
        (None, None, "it is wrong"),
        ("row 3", None, "row 3: it is wrong"),
        (None, "Do that.", "it is wrong. Do that."),
        ("row 3", "Do that.", "row 3: it is wrong. Do that."),
    ],
)
def test_a_message_says_where_what_and_what_instead(where, instead, message):
    for cls in CLASSES.values():
        error = made(cls, "it is wrong", where=where, instead=instead)
        assert str(error) == message
        assert (error.what, error.where, error.instead) == ("it is wrong", where, instead)


def test_a_full_stop_is_not_doubled():
    assert str(RequestError("it is wrong.", instead="Do that.")) == "it is wrong. Do that."


def test_where_may_be_learned_later():
    error = RequestError("it is wrong")
    error.where = "request 2"
    assert str(error) == "request 2: it is wrong"


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"])
def test_an_error_survives_the_way_to_another_process(name, again):
    error = made(CLASSES[name], "it is wrong", where="row 3", instead="Do that.")
    other = again(error)
    assert type(other) is type(error)
    assert str(other) == "row 3: it is wrong. Do that."
    assert vars(other) == vars(error)
