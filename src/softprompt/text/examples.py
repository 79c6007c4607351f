"""Rows become examples: one sequence of token ids each, with a place for every virtual token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompt.errors import DataError, LengthError, SourceError
from softprompt.text import answers, fields
from softprompt.text.answers import Answer
from softprompt.text.batch import IGNORED
from softprompt.text.fields import Encoded
from softprompt.text.places import BackboneKind, check_places
from softprompt.text.task import SPOKEN, Task
from softprompt.text.template import Anchor, Field, Mask, Slot, Start, Stop
from softprompt.text.tokens import PieceTokenizer, Spans
from softprompt.text.verbalizer import Verbalizer


@dataclass(frozen=True)
class Example:
    """One row as tokens.

    Attributes:
        tokens: everything before the target. A token id, or `-1 - v` for virtual token v of the row's prompt.
        field_at: where the first token that depends on the row stands; `len(tokens)` if none does.
        target: the answer's token ids, or what stands at each of `reads`; empty where the row has no such answer.
        label: the answer's position among the labels (or, where there are none, the number of what rows have in
            common); None without an answer.
        cut: how many field tokens were cut away.
        reads: the positions of `tokens` whose output is read, one for each of `target` if there is one; None where the
            answer is written behind the last token (or by a decoder of its own).
        labels: positions of all the labels that apply.
        spans: for each of `reads` the part of the field's text it stands for, of a question's answer.
        words: for each of `reads` the number of the field's word it stands for, of words that are labelled.
        second_at: where the second segment begins, behind the first `{sep}`; None where nothing stands behind it.
        missed: what the row asks for and cannot be answered: the label of each word that was cut away or of which the
            tokenizer makes nothing; `IGNORED` for a question's answer of which a part was cut away.
    """

    tokens: tuple[int, ...]
    field_at: int
    target: tuple[int, ...] = ()
    label: int | None = None
    cut: int = 0
    reads: tuple[int, ...] | None = None
    labels: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    words: tuple[int, ...] = ()
    second_at: int | None = None
    missed: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """How many tokens there are where all of it is run: the last of an answer that is written is only predicted."""
        return len(self.tokens) + (max(0, len(self.target) - 1) if self.reads is None else 0)


class ExampleMaker:
    """Makes examples of one task for one tokenizer.

    Attributes:
        virtual: P, virtual tokens of the whole template.
        limit: the most tokens an example may have, its target included; None for no bound.
        verbalizer: the label words; None where the answer is none of a few words.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        positions: int | None = None,
        kind: BackboneKind = "decoder",
        decoder_start: int = 0,
        *,
        inside: bool = False,
    ) -> None:
        """
        Args:
            task: its template's slots all have their lengths.
            positions: how many positions the model has.
            kind: of the model. Only decoders write the answer behind the row; encoders and encoder-decoders are given
                what the tokenizer puts behind a text.
            decoder_start: how many tokens a decoder of its own reads before the answer.
            inside: whether the virtual tokens stand inside the attention, where only a decoder gives them positions.

        Raises:
            TemplateError: a model of this kind does not answer where the template says.
            LengthError: slots, anchors and the longest label word alone are too long.
            SourceError: the tokenizer cannot tell where in a text its tokens stand, and the task asks for that.
        """
        self.task, self._kind = task, kind
        self._tokenizer = PieceTokenizer(tokenizer)
        self._opening = task.template.opening
        check_places(task, kind, self._tokenizer)
        if task.kind == "question-answering" and not tokenizer.is_fast:
            raise SourceError(
                f"its tokenizer ({type(tokenizer).__name__}) cannot tell where in a text a token stands",
                instead="Use a model with a fast tokenizer (tokenizer.json) for question-answering.",
            )
        by_words = task.kind in SPOKEN and bool(task.labels)
        opens = kind == "encoder-decoder"
        self.verbalizer = Verbalizer(task, self._tokenizer, answer_opens=opens) if by_words else None
        self._positions = positions
        # What is written last is never read.
        self._may_write = positions - decoder_start + 1 if opens and positions is not None else None
        self._pieces = self._fixed_pieces()
        self.virtual = sum(1 for piece in self._pieces if isinstance(piece, tuple) for token in piece if token < 0)
        self._fixed = sum(len(p) for p in self._pieces if isinstance(p, tuple))
        uncounted = self.virtual if inside and kind != "decoder" else 0
        bounds = (task.max_length, None if positions is None else positions + uncounted)
        self.limit = min((b for b in bounds if b is not None), default=None)
        self._check_limit(self._answer_length(()), None)

    def _fixed_pieces(self) -> list[tuple[int, ...] | Field]:
        """The template with anchors and slots as tokens, and the fields still open."""
        segments, own = self.task.template.segments, self._tokenizer
        pieces: list[tuple[int, ...] | Field] = [] if Start() in segments else [own.start]
        self._mask_piece = self._start_piece = 0
        self._stop_piece: int | None = None
        virtual = 0
        for segment in segments:
            match segment:
                case Slot(tokens):
                    assert tokens is not None, "slots are given their lengths first"
                    pieces.append(tuple(-1 - v for v in range(virtual, virtual + tokens)))
                    virtual += tokens
                case Anchor():
                    pieces.append(self._anchor(segment))
                case Start():
                    self._start_piece = len(pieces)
                    pieces.append(own.start)
                case Stop():
                    self._stop_piece = len(pieces) if self._stop_piece is None else self._stop_piece
                    pieces.append(own.stop)
                case Mask():
                    assert own.mask is not None, "checked before"
                    self._mask_piece = len(pieces)
                    pieces.append((own.mask,))
                case Field():
                    pieces.append(segment)
        if self._kind != "decoder" and segments[-1] != Stop():
            pieces.append(own.stop)
        return pieces

    def _anchor(self, anchor: Anchor) -> tuple[int, ...]:
        opens, start = anchor is self._opening, self._tokenizer.start
        tokens = tuple(self._tokenizer.encode(anchor.text, opens=opens))
        # A template may write the beginning-of-text token itself; it stands there once.
        return tokens[len(start) :] if opens and tokens[: len(start)] == start else tokens

    def __call__(
        self, row: Mapping[str, Any], *, answered: bool = True, where: str | None = None, room_for: int = 1
    ) -> Example:
        """Make one example.

        Args:
            row: the fields' values.
            answered: whether the row must hold its answer.
            where: how an error names the row.
            room_for: how many answer tokens will be generated, where the row holds no answer and the task no labels.

        Raises:
            DataError: a field or the answer is missing, or is neither text nor a number.
            LabelError: the answer is none of the labels.
            LengthError: the row cannot fit even with its fields cut to nothing.
        """
        where = _named(row, where)
        found = self._found(row, where)
        inside = next((f for f in found if f.words is not None or f.spans is not None), None)
        answer = self._answer(row, where, inside) if answered else Answer()
        length = self._answer_length(answer.target, room_for)
        self._check_limit(length, where)
        room = None if self.limit is None else self.limit - self._fixed - self._room_behind(length)
        pieces, cut = self._fill(found, room)
        tokens: list[int] = []
        begins: list[int] = []
        field_at: int | None = None
        inside_at, inside_size = 0, 0
        for field, piece in pieces:
            begins.append(len(tokens))
            if field is not None and field_at is None:
                field_at = len(tokens)
            if field is not None and field is inside:
                inside_at, inside_size = len(tokens), len(piece)
            tokens.extend(piece)
        if not tokens:
            raise DataError("the row is empty and so is the template", where=where)
        target, words, missed = answer.target, tuple[int, ...](), tuple[int, ...]()
        spans: tuple[tuple[int, int], ...] = ()
        reads: tuple[int, ...] | None
        if inside is None:
            reads = self._reads(tokens, begins)
        else:
            words, within = self._inside(found, inside, inside_size, room, where)
            reads = tuple(inside_at + i for i in within)
            if inside.words is not None:
                read = set(words)
                missed = tuple(label for i, label in enumerate(target) if i not in read)
                target = tuple(target[i] for i in words) if target else ()
            else:
                words, spans, target = (), tuple((inside.spans or [])[:inside_size]), target[:inside_size]
                if answer.target and sum(target) != answers.BEGINS + answers.ENDS:
                    # Part of the answer was cut away: nothing is learned from such a row.
                    target, missed = (IGNORED,) * len(target), (IGNORED,)
        return Example(
            tokens=tuple(tokens),
            field_at=len(tokens) if field_at is None else field_at,
            target=target,
            label=answer.labels[0] if len(answer.labels) == 1 else None,
            cut=cut,
            reads=reads,
            labels=answer.labels,
            spans=spans,
            words=words,
            second_at=self._second_at(begins, len(tokens)),
            missed=missed,
        )

    def fill(
        self, row: Mapping[str, Any], room: int | None, *, where: str | None = None
    ) -> tuple[list[tuple[bool, Sequence[int]]], int]:
        """The template filled with a row, up to the target: its pieces in order, and how many field tokens were cut.

        Args:
            room: the most tokens of all fields together; None for all.
            where: how an error names the row.

        Returns:
            Of each piece whether it is a field, and its tokens. What the tokenizer puts before every text is the first,
            unless the template places it.

        Raises:
            DataError: a field is missing, or is neither text nor a number.
        """
        pieces, cut = self._fill(self._found(row, where), room)
        return [(field is not None, piece) for field, piece in pieces], cut

    def _found(self, row: Mapping[str, Any], where: str | None) -> list[Encoded]:
        """The row's fields, in the template's order."""
        return [self._field(piece, row, where) for piece in self._pieces if isinstance(piece, Field)]

    def _fill(
        self, found: Sequence[Encoded], room: int | None
    ) -> tuple[list[tuple[Encoded | None, Sequence[int]]], int]:
        """The template's pieces, each with the field that it is of, and how many field tokens were cut."""
        sizes = fields.shares([len(f.tokens) for f in found], room)
        kept = iter([(f, f.tokens[:size]) for f, size in zip(found, sizes, strict=True)])
        pieces: list[tuple[Encoded | None, Sequence[int]]] = [
            next(kept) if isinstance(piece, Field) else (None, piece) for piece in self._pieces
        ]
        return pieces, sum(len(f.tokens) for f in found) - sum(sizes)

    def label(self, row: Mapping[str, Any], where: str | None = None) -> int | None:
        """The position of a row's answer among the labels; None where its task has no label words.

        Raises:
            DataError: the answer is missing, or is neither text nor a number.
            LabelError: it is none of the labels.
        """
        where = _named(row, where)
        if self.verbalizer is None:
            return None
        return answers.position(self.task, row, where)

    def all(self, rows: Iterable[Mapping[str, Any]]) -> list[Example]:
        """Make an example of every row, answers included; an error names the row by its origin or its number (from 1).

        Raises:
            DataError: there is no row at all, and as `__call__`.
        """
        examples = [
            self(row, where=getattr(row, "where", None) or f"row {number}") for number, row in enumerate(rows, 1)
        ]
        if not examples:
            raise DataError("there is no row", instead="Give at least one.")
        return examples

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids; the blank that the template puts before its target is taken off."""
        blank, opens = self._answer_place()
        return self._tokenizer.decode(list(ids), opens=opens).removeprefix(blank)

    def _field(self, field: Field, row: Mapping[str, Any], where: str | None) -> Encoded:
        encode = fields.encode
        if field.name == self.task.field:
            encode = fields.encode_words if self.task.kind == "token-classification" else fields.encode_spans
        return encode(self._tokenizer, row, field.name, field.blank, field is self._opening, where)

    def _answer_place(self) -> tuple[str, bool]:
        """The blank in front of an answer in words, and whether it begins a text."""
        target = self.task.template.target
        assert target is not None, "a task that is answered in words says where"
        if self._kind == "encoder-decoder":  # a text of its own
            return "", True
        return target.blank, target is self._opening

    def _answer(self, row: Mapping[str, Any], where: str | None, inside: Encoded | None) -> Answer:
        task = self.task
        match task.kind:
            case "generation":
                return answers.in_words(task, row, where, self._tokenizer, *self._answer_place())
            case "classification":
                assert self.verbalizer is not None
                return answers.by_word(task, row, where, self.verbalizer)
            case "multi-label":
                return answers.some_labels(task, row, where)
            case "sequence-classification":
                return answers.one_label(task, row, where)
            case "feature-extraction":
                return answers.in_common(task, row, where)
        assert inside is not None, "a task that is answered inside a field has one"
        return (answers.of_words if task.kind == "token-classification" else answers.of_span)(task, row, where, inside)

    def _inside(
        self, found: Sequence[Encoded], field: Encoded, size: int, room: int | None, where: str | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which words (or else tokens) of a field are answered, and at which of the `size` tokens that are kept of it.

        Not those that were cut away, nor words that the tokenizer makes nothing of (a zero-width blank, say).

        Args:
            found: all fields.
            room: of all of them together.
        """
        units: Spans = field.words if field.words is not None else [(i, i + 1) for i in range(size)]
        kept = tuple(i for i, (a, b) in enumerate(units) if a < b <= size)
        if not kept:
            raise self._nothing_left(found, field, room, where)
        # A decoder has seen a word at its last token; an encoder's first one is as good as any.
        return kept, tuple(units[i][1] - 1 if self._kind == "decoder" else units[i][0] for i in kept)

    def _nothing_left(
        self, found: Sequence[Encoded], field: Encoded, room: int | None, where: str | None
    ) -> DataError | LengthError:
        what = f"nothing of field {self.task.field!r} is left to answer in"
        if room is None or not field.tokens:
            return DataError(what, where=where, instead="Give it some text.")
        sizes = [len(f.tokens) for f in found]
        needed = next(end for begin, end in field.words or [(0, 1)] if begin < end)
        place = next(i for i, f in enumerate(found) if f is field)
        more = next(n for n in range(1, sum(sizes) + 1) if fields.shares(sizes, room + n)[place] >= needed)
        bound = self.task.max_length
        named = bound is not None and bound == self.limit
        raisable = bound is not None and named and (self._positions is None or bound + more <= self._positions)
        others = ", its slots or the other fields" if len(found) > 1 else " or its slots"
        return LengthError(
            f"{what}: {'max_length is' if named else 'the positions of the model are'} {self.limit}, and slots and "
            f"hard text take {self._fixed} of them",
            where=where,
            instead=f"{f'Raise max_length by {more} or more, or shorten' if raisable else 'Shorten'} the template"
            f"{others} by {more} tokens.",
        )

    def _reads(self, tokens: Sequence[int], begins: Sequence[int]) -> tuple[int, ...] | None:
        """Where the model's output is read, of a task that is not answered inside a field."""
        task, last = self.task, len(tokens) - 1
        if isinstance(task.template.target, Mask):
            return (begins[self._mask_piece],)
        if task.kind in SPOKEN or (task.kind == "sequence-classification" and self._kind == "encoder-decoder"):
            return None
        if self._kind == "decoder":
            return (last,)
        if task.kind == "sequence-classification" and self._tokenizer.start:
            return (begins[self._start_piece],)
        real = tuple(i for i, token in enumerate(tokens) if token >= 0)
        return (real[:1] if task.kind == "sequence-classification" else real) or (last,)

    def _second_at(self, begins: Sequence[int], length: int) -> int | None:
        """Where the second segment of a row of so many tokens begins, given where its pieces do."""
        if self._stop_piece is None:
            return None
        behind = begins[self._stop_piece] + len(self._tokenizer.stop)
        return behind if behind < length else None

    def _answer_length(self, target: Sequence[int], room_for: int = 1) -> int:
        """Tokens of an answer in words; the same for every label, so that what is cut gives none away."""
        if self.task.kind not in SPOKEN:
            return 0
        if self.verbalizer is None:
            return len(target) or room_for
        return 1 if self.verbalizer.by_first_token else max(map(len, self.verbalizer.words))

    def _room_behind(self, answer: int) -> int:
        """Positions of a row that are kept free for its answer."""
        return answer if self._kind == "decoder" else 0

    def _check_limit(self, answer: int, where: str | None) -> None:
        if self._may_write is not None and answer > self._may_write:
            raise LengthError(
                f"the answer takes {answer} tokens, but the model's decoder has positions for {self._may_write}",
                where=where,
                instead="Shorten it, or give a smaller max_new_tokens.",
            )
        if self.limit is not None and self._fixed + self._room_behind(answer) > self.limit:
            raise LengthError(
                f"slots and hard text take {self._fixed} tokens and the answer {self._room_behind(answer)}, "
                f"but only {self.limit} are allowed",
                where=where,
                instead="Shorten the template, its slots or the answer, or raise max_length if the model has more "
                "positions.",
            )


def _named(row: Mapping[str, Any], where: str | None) -> str | None:
    """How an error names a row; one that is none is refused."""
    where = where or getattr(row, "where", None)
    if not isinstance(row, Mapping):
        raise DataError(
            f"the row is {type(row).__name__}, not fields by name",
            where=where,
            instead='Give rows such as {"text": "...", "label": "..."}.',
        )
    return where
