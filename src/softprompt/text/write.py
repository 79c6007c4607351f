"""Rows become worked examples: the template filled, the answer, a separator, each token with its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompt.errors import LengthError
from softprompt.text.choose import choose
from softprompt.text.examples import ExampleMaker
from softprompt.text.task import Task
from softprompt.text.tokens import PieceTokenizer
from softprompt.text.worked import Recipe, TokenKind, WorkedExamples


def work(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    seed: int,
    positions: int | None = None,
) -> WorkedExamples:
    """Choose rows and write them as a query of the task would be written, piece by piece, without slots.

    Hard text has the tokens it has in every row; a row's text is data, in which the name of a special token is only
    text. The answer is written whole: a label's word, or the text with its end-of-text token. What is asked of it is
    what is asked of a row's: the first token of a label's word, where that tells the labels apart, else all of it.
    What the tokenizer puts before every text is not repeated: it stands once, before the whole.

    Args:
        task: what the worked examples stand in front of.
        tokenizer: the backbone's.
        rows: with their answers; they are not changed.
        recipe: how many, in which order, and so on.
        seed: of the choice.
        positions: how many positions the model has.

    Raises:
        DataError, LabelError: too few rows, or one that cannot be used; the message names it.
        LengthError: a row like the longest of them does not fit behind them.
    """
    maker = ExampleMaker(task.with_template(task.template.with_text_alone()), tokenizer)
    names = [getattr(row, "where", None) or f"row {number}" for number, row in enumerate(rows, 1)]
    chosen = choose([maker.label(row, name) for row, name in zip(rows, names, strict=True)], recipe, seed)
    pieced = PieceTokenizer(tokenizer)
    separator = pieced.encode(recipe.separator)
    tokens: list[int] = []
    kinds: list[TokenKind] = []
    answers: list[int] = []
    longest = 0
    for example, number in enumerate(chosen):
        pieces, asked = _written(maker, rows[number], recipe, names[number])
        longest = max(longest, sum(len(piece) for _, piece in pieces))
        for kind, piece in (*pieces, ("separator", separator)):
            tokens += piece
            kinds += [kind] * len(piece)
            answers += [example if kind == "label" and i < asked else -1 for i in range(len(piece))]
    _check_room(len(tokens), len(pieced.start) + longest, task, recipe, positions)
    return WorkedExamples(tuple(tokens), tuple(kinds), tuple(answers), len(chosen), tuple(n + 1 for n in chosen))


def _written(
    maker: ExampleMaker, row: Mapping[str, Any], recipe: Recipe, where: str
) -> tuple[list[tuple[TokenKind, Sequence[int]]], int]:
    """A row's pieces by kind, its answer the last of them, and how many tokens of that are asked for."""
    example = maker(row, where=where)
    filled, _ = maker.fill(row, recipe.example_length, where=where)
    pieces: list[tuple[TokenKind, Sequence[int]]] = [
        ("input" if is_field else "format", piece) for is_field, piece in filled
    ]
    answer = example.target
    if maker.verbalizer is not None and example.label is not None:
        answer = maker.verbalizer.words[example.label]
    # The first piece is what the tokenizer puts before every text.
    return [*pieces[1:], ("label", answer)], len(example.target)


def _check_room(context: int, longest: int, task: Task, recipe: Recipe, positions: int | None) -> None:
    for bound, where, instead in (
        (positions, "positions of the model", "."),
        (task.max_length, "max_length", ", or raise max_length, which counts the worked examples, too."),
    ):
        if bound is not None and context + longest > bound:
            raise LengthError(
                f"{recipe.examples} worked examples take {context} tokens and a row like the longest of them "
                f"{longest}, but only {bound} are allowed",
                where=where,
                instead="Lower examples or example_length" + instead,
            )
