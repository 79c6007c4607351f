"""The only place where prompt and text meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from softprompt.backbone.attention import Record
from softprompt.backbone.backbone import Backbone
from softprompt.backbone.context import Context, Stretch
from softprompt.errors import SourceError, TemplateError
from softprompt.prompts.prompt import Values
from softprompt.run.counts import Counts
from softprompt.run.plan import Plan, Tokens, plan
from softprompt.run.ranges import Part, within
from softprompt.run.reader import Reader
from softprompt.text.batch import Batch
from softprompt.text.examples import Example

# Kept texts may take this much unless told otherwise.
BUDGET = 4 * 1024**3


@dataclass(frozen=True)
class Prepared:
    """A batch as the model takes it.

    Attributes:
        inputs_embeds: `[B, T, D]`, what is computed for each row; gradients reach the prompts through it.
        mask: `[B, T]` bool.
        at, targets: `[B, S]` int64; see `Batch`.
        decoder_ids: `[B, U]` int64, or None; see `Batch`.
        segments: `[B, T]` int64, or None; see `Batch`.
        context: what stands before the rows, or None.
        rows: `[B]` int64, the entry of `context` each row reads; None where there is one, or one per row.
        asked: for each prompt `[A, V]` logits at the virtual tokens it asks about; see `Filling`.
    """

    inputs_embeds: Tensor
    mask: Tensor
    at: Tensor
    targets: Tensor
    decoder_ids: Tensor | None
    segments: Tensor | None
    context: Context | None
    rows: Tensor | None
    asked: tuple[Tensor, ...]


@dataclass(frozen=True)
class Answers:
    """What the model answers to a batch.

    Attributes:
        states: `[B, S, D]`, the last hidden states at the answers' positions.
        logits: `[B, S, V]`, what the LM head makes of them; None where there is none.
        targets: `[B, S]` int64, what was to be predicted.
        asked: for each prompt `[A, V]` logits at the virtual tokens it asks about; see `Filling`.
    """

    states: Tensor
    logits: Tensor | None
    targets: Tensor
    asked: tuple[Tensor, ...]

    def of(self, rows: Sequence[int]) -> Answers:
        """Those of some rows."""
        if len(rows) == len(self.targets):
            return self
        picked = list(rows)
        logits = None if self.logits is None else self.logits[picked]
        return Answers(self.states[picked], logits, self.targets[picked], self.asked)


@dataclass(frozen=True)
class Encoded:
    """What an encoder made of B rows.

    Attributes:
        states: `[B, T, D]`.
        inputs_embeds, mask, context, rows: as in `Prepared`.
    """

    inputs_embeds: Tensor
    mask: Tensor
    states: Tensor
    context: Context | None
    rows: Tensor | None

    def of(self, rows: Sequence[int]) -> Encoded:
        """Those of some rows, which may stand there more than once."""
        picked = torch.tensor(rows, device=self.mask.device)
        entries = self.rows
        if entries is not None:
            entries = entries[picked]
        elif self.context is not None and self.context.size > 1:
            entries = picked  # one for each row
        return Encoded(self.inputs_embeds[picked], self.mask[picked], self.states[picked], self.context, entries)


@dataclass(frozen=True)
class Filling:
    """What fills the slots of some rows.

    Attributes:
        values: the prompt.
        compiled: keys and values of what stands in front of every row, by its tokens. None while the values are being
            trained: nothing may then be kept from one step to the next.
        asked: virtual tokens, from 0, behind which the model's own prediction is wanted, too. Such a prompt stands
            before all of its rows.
    """

    values: Values
    compiled: dict[tuple[Tokens, Tokens], list[Stretch]] | None = field(default=None, compare=False)
    asked: tuple[int, ...] = ()


class Forward:
    """Carries examples and prompts through the backbone, computing each token as rarely as its place allows.

    Attributes:
        share: whether anything is shared between rows; False where the backbone cannot read a context.
        reader: the texts it has read.
        ran: how many tokens it has run.
    """

    def __init__(self, backbone: Backbone, *, budget: int = BUDGET, share: bool = True) -> None:
        self.backbone = backbone
        self.share = share and backbone.lowers
        self.reader = Reader(backbone, budget)
        self.ran = Counts()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What is run meanwhile is not counted."""
        ran, read = self.ran.copy(), self.reader.ran
        try:
            yield
        finally:
            self.ran, self.reader.ran = ran, read

    def plan(self, example: Example, values: Values | None = None) -> Plan:
        """How often each token of an example is computed; `values` are what fills its slots."""
        inside = values.tokens if values is not None and values.inside is not None else 0
        return plan(example, share=self.share, inside=inside)

    def prepare(
        self, examples: Sequence[Example], fillings: Sequence[Filling], which: Sequence[int] | None = None
    ) -> Prepared:
        """Compute what stands before the rows, and lay the rest out.

        Args:
            examples: B rows, of any mixture of templates.
            fillings: K prompts.
            which: for each row its prompt's index; None where there is one.

        Raises:
            TemplateError: a row has more virtual tokens than its prompt, or nothing behind a prefix.
            SourceError: a prefix for a model whose attention cannot be reached.
        """
        which = which if which is not None else [0] * len(examples)
        _check(examples, fillings, which)
        plans = [self.plan(e, fillings[k].values) for e, k in zip(examples, which, strict=True)]
        context, rows, asked = self._before(plans, fillings, which)
        batch = self._batch(examples, plans)
        inputs = self._embed(batch, fillings, which)
        return Prepared(
            inputs, batch.mask, batch.at, batch.targets, batch.decoder_ids, batch.segments, context, rows, asked
        )

    def __call__(
        self, examples: Sequence[Example], fillings: Sequence[Filling], which: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits `[B, S, V]` at the answers' positions, and the answers `[B, S]`; arguments as in `prepare`."""
        answers = self.answers(examples, fillings, which)
        assert answers.logits is not None, "the model has an LM head, or its task would not have been begun"
        return answers.logits, answers.targets

    def answers(
        self,
        examples: Sequence[Example],
        fillings: Sequence[Filling],
        which: Sequence[int] | None = None,
        *,
        head: bool = True,
    ) -> Answers:
        """What the model answers; `head` tells whether logits are wanted, the rest as in `prepare`."""
        p = self.prepare(examples, fillings, which)
        with within(Part.ROWS):
            outputs = self.backbone.outputs(
                p.inputs_embeds,
                p.mask,
                p.context,
                p.rows,
                at=p.at,
                decoder_ids=p.decoder_ids,
                segments=p.segments,
                head=head,
            )
        return Answers(outputs.states, outputs.logits, p.targets, p.asked)

    def encode(
        self, examples: Sequence[Example], fillings: Sequence[Filling], which: Sequence[int] | None = None
    ) -> Encoded:
        """What the encoder of an encoder-decoder makes of rows, whatever their answers; arguments as in `prepare`."""
        p = self.prepare([replace(e, target=()) for e in examples], fillings, which)
        states = self.backbone.outputs(p.inputs_embeds, p.mask, p.context, p.rows, head=False).states
        return Encoded(p.inputs_embeds, p.mask, states, p.context, p.rows)

    def decode(self, encoded: Encoded, rows: Sequence[int], targets: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Logits `[N, S, V]` and the answers `[N, S]`, of N answers to encoded rows.

        Args:
            encoded: the rows.
            rows: for each answer its row.
            targets: the answers.
        """
        batch = Batch.of([(0,)] * len(rows), targets, decoder_start=self.backbone.decoder_start)
        batch = batch.to(self.backbone.device)
        own = encoded.of(rows)
        outputs = self.backbone.outputs(
            own.inputs_embeds,
            own.mask,
            own.context,
            own.rows,
            at=batch.at,
            decoder_ids=batch.decoder_ids,
            encoded=own.states,
        )
        assert outputs.logits is not None, "an encoder-decoder has an LM head, or it would not have been taken in"
        return outputs.logits, batch.targets

    def _batch(self, examples: Sequence[Example], plans: Sequence[Plan]) -> Batch:
        """The rows as they are run. All of them are answered in one way: written, or read at positions of theirs."""
        reads: list[Sequence[int] | None] = []
        seconds: list[int | None] = []
        for example, p in zip(examples, plans, strict=True):
            before = len(example.tokens) - len(p.row)
            reads.append(None if example.reads is None else [i - before for i in example.reads])
            seconds.append(None if example.second_at is None else example.second_at - before)
        writes = any(e.reads is None for e in examples)
        batch = Batch.of(
            [p.row for p in plans],
            [e.target for e in examples],
            reads,
            seconds if self.backbone.marks_segments else (),
            decoder_start=self.backbone.decoder_start if writes else (),
            in_front=self.backbone.pads_in_front,
        )
        self.ran.add_rows(batch.mask)
        return batch.to(self.backbone.device)

    def _before(
        self, plans: Sequence[Plan], fillings: Sequence[Filling], which: Sequence[int]
    ) -> tuple[Context | None, Tensor | None, tuple[Tensor, ...]]:
        with within(Part.TEXTS):
            texts = iter(self.reader.texts([p for p in plans if p.text]))
        with within(Part.SHARED):
            shared, asked = self._shared(plans, fillings, which)
        entries: dict[tuple[object, ...], list[Stretch]] = {}
        keys = []
        for p, k in zip(plans, which, strict=True):
            parts = [self.reader.head(p.head)] if p.head else []
            if p.text:
                parts.append(next(texts))
            elif p.shared:
                parts += shared[k, p.head, p.shared]
            # A text does not depend on the prompt: rows of several tasks about one text read one entry.
            keys.append((k, p.head, p.shared) if p.shared else (p.head, p.text))
            entries.setdefault(keys[-1], parts)
        number = {key: i for i, key in enumerate(entries)}
        rows = [number[key] for key in keys]
        with within(Part.CONTEXT):
            context = Context.of(list(entries.values()))
        self.ran.add_context(entries.values())
        if context is None or context.size == 1 or rows == list(range(context.size)):
            return context, None, asked
        return context, torch.tensor(rows, device=self.backbone.device), asked

    def _shared(
        self, plans: Sequence[Plan], fillings: Sequence[Filling], which: Sequence[int]
    ) -> tuple[dict[tuple[int, Tokens, Tokens], list[Stretch]], tuple[Tensor, ...]]:
        """Keys and values of what is learned and stands in front, once for each prompt, all of them in one pass; and
        the logits that prompts ask for on the way."""
        needed = dict.fromkeys((k, p.head, p.shared) for p, k in zip(plans, which, strict=True) if p.shared)
        found: dict[tuple[int, Tokens, Tokens], list[Stretch]] = {}
        missing: list[tuple[int, Tokens, Tokens]] = []
        for key in needed:
            compiled = fillings[key[0]].compiled
            if compiled is not None and key[1:] in compiled:
                found[key] = compiled[key[1:]]
            else:
                missing.append(key)
        inside = {key: self._inside(fillings[key[0]].values) for key in missing}
        heads = {key: [self.reader.head(key[1])] if key[1] else [] for key in missing}
        rest = {key: key[2][sum(s.length for s in inside[key]) :] for key in missing}
        run = [key for key in missing if rest[key]]
        # Where nothing is shared, a prompt that asks is run once by itself.
        alone = {
            k: (k, (), p.row[: p.row.index(min(p.row)) + 1])
            for p, k in zip(plans, which, strict=True)
            if fillings[k].asked and not p.shared
        }
        rest |= {key: key[2] for key in alone.values()}
        stretches = dict(inside)
        asked: dict[int, Tensor] = {}
        if run or alone:
            ran = [*run, *alone.values()]
            before = Context.of([heads.get(key, []) + inside.get(key, []) for key in ran])
            left, asked = self._run_shared([rest[key] for key in ran], [key[0] for key in ran], fillings, before)
            stretches |= {key: inside[key] + [s] for key, s in zip(run, left, strict=False)}
        for key, own in stretches.items():
            compiled = fillings[key[0]].compiled
            found[key] = own
            if compiled is not None:
                found[key] = compiled[key[1:]] = [s.copy() for s in own]
        nothing = self.backbone.embeddings.new_zeros(0, 0)
        return found, tuple(asked.get(k, nothing) for k in range(len(fillings)))

    def _run_shared(
        self,
        sequences: Sequence[Tokens],
        which: Sequence[int],
        fillings: Sequence[Filling],
        before: Context | None,
    ) -> tuple[list[Stretch], dict[int, Tensor]]:
        """What prompts in front leave behind, one stretch a sequence, and for each prompt the logits it asks for."""
        asks = [fillings[k].asked for k in which]
        reads = [[s.index(-1 - v) for v in ask] or [0] for s, ask in zip(sequences, asks, strict=True)]
        batch = Batch.of(sequences, reads=reads)
        self.ran.in_front += int(batch.mask.sum())
        batch = batch.to(self.backbone.device)
        record = Record()
        outputs = self.backbone.outputs(
            self._embed(batch, fillings, which), batch.mask, before, at=batch.at, head=any(asks), record=record
        )
        stretches = record.stretches(batch.mask) if self.share else []
        if outputs.logits is None:
            return stretches, {}
        rows = zip(which, asks, outputs.logits, strict=True)
        return stretches, {k: logits[len(logits) - len(ask) :] for k, ask, logits in rows if ask}

    def _inside(self, values: Values) -> list[Stretch]:
        """What of a prompt stands inside the attention, as attention takes it."""
        if values.inside is None:
            return []
        keys, others = values.inside
        if len(keys) != len(self.backbone.sites):
            raise SourceError(
                f"a prefix for {len(keys)} attention sites; {len(self.backbone.sites)} of this model can be reached",
                where=self.backbone.name,
                instead="Use prompt-tuning or p-tuning, which stand at the input." if not self.backbone.sites else None,
            )

        def ready(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(t.to(self.backbone.device, self.backbone.dtype) for t in tensors)

        return [Stretch(ready(keys), ready(others), pinned=True)]

    def _embed(self, batch: Batch, fillings: Sequence[Filling], which: Sequence[int]) -> Tensor:
        """Input embeddings `[B, T, D]`: words from the model's table, virtual tokens from each row's prompt."""
        words = self.backbone.embed(batch.ids.clamp_min(0))
        virtual = batch.ids < 0
        if not bool(virtual.any()):
            return words
        # A prefix has no row here, and no virtual token of it ever comes here.
        tables = [
            words.new_zeros(0, words.shape[-1]) if e is None else e for e in (f.values.at_input for f in fillings)
        ]
        starts = [0]
        for table in tables:
            starts.append(starts[-1] + len(table))
        prompts = torch.cat([t.to(words.device, words.dtype) for t in tables])
        first = torch.tensor([starts[k] for k in which], device=words.device)
        index = first[:, None] + (-1 - batch.ids).clamp_min(0)
        return words.masked_scatter(virtual[..., None], prompts[index[virtual]])


def _check(examples: Sequence[Example], fillings: Sequence[Filling], which: Sequence[int]) -> None:
    """Unchecked, a row could read on into the next prompt."""
    for example, k in zip(examples, which, strict=True):
        asked, there = -min(example.tokens), fillings[k].values.tokens
        if asked > there:
            raise TemplateError(
                f"the template has {asked} virtual tokens, but the prompt {there}",
                where=f"prompt {k}",
                instead="Give each row the prompt that was made for its template.",
            )
        stands_in_front = min(example.tokens[there:], default=-1) >= 0 and max(example.tokens[:there], default=0) < 0
        if fillings[k].values.inside is not None and not stands_in_front:
            raise TemplateError(
                "a prefix stands whole before a row, and a row must have a token behind it",
                where=f"prompt {k}",
                instead="Put some text behind the slot.",
            )
