"""Which tokens of an example are computed how often.

In a causal model a position depends only on what stands before it, so the order of the template alone decides:

    nothing learned and no example text before or at it    head    once per load
    learned, but no example text before it                 shared  once per step, for all rows of a prompt
    example text, but nothing learned before it            text    once per example, for every epoch and every task
    both                                                   row     for every row, every step
"""

from __future__ import annotations

from dataclasses import dataclass

from softprompt.text.examples import Example

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """An example's tokens, cut where the way they are computed changes.

    Of `shared` and `text` at most one is not empty; `row` never is: what is read of a row is run in it.
    """

    head: Tokens
    shared: Tokens
    text: Tokens
    row: Tokens


def plan(example: Example, *, share: bool = True, inside: int = 0) -> Plan:
    """Cut an example.

    Args:
        inside: how many tokens, from the first, stand inside the attention: they are never run as tokens.
        share: False computes every token in every row: the reference, and what is left where a backbone cannot read a
            context (see `Backbone.lowers`).
    """
    tokens = example.tokens
    if not share:
        return Plan((), tokens[:inside], (), tokens[inside:])
    end = len(tokens) - 1 if example.reads is None else min(example.reads)
    learned_at = min(next((i for i, t in enumerate(tokens) if t < 0), end), end)
    field_at = min(example.field_at, end)
    head_end, second = sorted((learned_at, field_at))
    middle = tokens[head_end:second]
    learned_first = learned_at < field_at
    return Plan(
        head=tokens[:head_end],
        shared=middle if learned_first else (),
        text=() if learned_first else middle,
        row=tokens[second:],
    )
