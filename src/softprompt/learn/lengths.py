"""What rows that were too long have lost: said, and refused where it is everything."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from softprompt.errors import LengthError
from softprompt.text.examples import Example, ExampleMaker

_LOG = logging.getLogger("softprompt")


def check_answers_kept(maker: ExampleMaker, examples: Sequence[Example], what: str, *, measured: bool) -> None:
    """Say of how many rows a part that is asked for was cut away: a question's answer, or words that are labelled.

    Args:
        maker: made the examples.
        what: what rows these are.
        measured: whether they are measured on, or learned from.

    Raises:
        LengthError: every row is a question that lost its answer.
    """
    lost = [e for e in examples if e.cut and e.missed]
    if not lost:
        return
    bound = maker.task.max_length
    named = bound is not None and bound == maker.limit
    advice = f"Raise max_length ({bound})" if named else f"The model has {maker.limit} positions"
    advice += ", or give shorter texts." if named else ": give shorter texts."
    count = f"{len(lost)} of {len(examples)} {what}"
    if not lost[0].words and len(lost) == len(examples):
        raise LengthError(
            f"all of the {len(examples)} {what} lost their answer, because they were too long",
            where="max_length" if named else None,
            instead=advice,
        )
    if lost[0].words:
        words = sum(len(e.words) + len(e.missed) for e in examples)
        count = f"{sum(len(e.missed) for e in lost)} of {words} words, in {count},"
    outcome = "they count as wrong" if measured else "nothing is learned from them"
    said = "were cut away" if lost[0].words else "lost their answer"
    _LOG.warning("%s %s, because the rows were too long: %s. %s", count, said, outcome, advice)
