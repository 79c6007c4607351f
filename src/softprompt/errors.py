"""Every error softprompt raises on purpose, as one tree.

    SoftpromptError
    ├── RequestError            the request cannot be met as it stands        exit 2, HTTP 400
    │   ├── SettingsError       an option or argument is out of range
    │   ├── TemplateError       the template cannot be read or filled
    │   ├── LabelError          label words cannot be told apart, or a label is unknown
    │   ├── DataError           a row or a data file cannot be used
    │   ├── LengthError         a row cannot fit the model's positions
    │   ├── SourceError         a backbone cannot be found or is of a kind that is not supported
    │   ├── UnknownPromptError  a request names a prompt that is not there                HTTP 404
    │   ├── OutputError         the output folder cannot be written to
    │   └── ArtifactError       a saved prompt is damaged or incomplete
    │       └── MismatchError   a saved prompt belongs to another backbone or tokenizer
    └── WorkError               the work was begun and failed                 exit 1, HTTP 500
        ├── DivergenceError     the loss is no longer a number
        ├── SaveError           a prompt could not be written; the old one is whole
        └── BusyError           it could not be answered now                              HTTP 503
            ├── QueueError      too many requests are waiting                             HTTP 429
            └── DeadlineError   it was not answered in time                               HTTP 504

A message says what was wrong, where, and what to do instead.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar


class SoftpromptError(Exception):
    """Root of the tree.

    Args:
        what: what was wrong, with the values involved.
        where: the row, field, option or file at fault.
        instead: what to do instead.
    """

    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, what: str, *, where: str | None = None, instead: str | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.instead = what, where, instead

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head.rstrip('.')}. {self.instead}" if self.instead else head


class RequestError(SoftpromptError):
    """The request cannot be met as it stands; nothing was begun."""

    exit_status = 2
    http_status = 400


class SettingsError(RequestError):
    """An option or argument is out of range, or two of them contradict each other."""


class TemplateError(RequestError):
    """The template cannot be read, or a row does not fill it."""


class LabelError(RequestError):
    """Label words cannot be told apart by the tokenizer, or a label is not in the task."""


class DataError(RequestError):
    """A row or a data file cannot be used."""


class LengthError(RequestError):
    """A row cannot fit the model's positions, whatever is cut from its fields."""


class SourceError(RequestError):
    """A backbone cannot be found, or is of a kind that is not supported."""


class UnknownPromptError(RequestError):
    """A request names a prompt that is not there."""

    http_status = 404


class OutputError(RequestError):
    """The output folder cannot be written to, or holds something already."""


class ArtifactError(RequestError):
    """A saved prompt is damaged, incomplete, or of a format this version does not read."""


class MismatchError(ArtifactError):
    """A saved prompt belongs to another backbone or tokenizer."""


class WorkError(SoftpromptError):
    """The work was begun and failed."""


class DivergenceError(WorkError):
    """The loss is no longer a number. `step` is the optimizer step at which it happened."""

    def __init__(self, what: str, *, step: int, where: str | None = None, instead: str | None = None) -> None:
        super().__init__(what, where=where, instead=instead)
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is copied, and sent between processes, by its arguments alone.
        return partial(type(self), step=self.step), self.args, self.__dict__


class SaveError(WorkError):
    """A prompt could not be written. What stood there before is whole."""


class BusyError(WorkError):
    """A request cannot be answered now, though nothing is wrong with it."""

    http_status = 503


class QueueError(BusyError):
    """Too many requests are waiting already."""

    http_status = 429


class DeadlineError(BusyError):
    """A request was not answered in the time it had."""

    http_status = 504
