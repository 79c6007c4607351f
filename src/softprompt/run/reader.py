"""Texts that are read once and kept: the keys and values of what no prompt can change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from softprompt.backbone.backbone import Backbone
from softprompt.backbone.context import Context, Stretch
from softprompt.run.plan import Plan, Tokens
from softprompt.text.batch import Batch

# Tokens run at once while reading: enough to keep the processor busy, few enough to bound memory.
CHUNK = 2048


class Reader:
    """Reads head and example texts, and keeps those it was asked to read ahead, while a budget lasts.

    What is not kept is read again whenever it is needed: nothing is kept by the way, so that what is kept, and with it
    every last bit of a result, does not depend on the order of the batches. A text is known by all the tokens before
    and in it, so a changed template or row is another text. One reader serves one backbone.

    Attributes:
        budget: bytes that may be kept.
        kept: bytes that are.
    """

    def __init__(self, backbone: Backbone, budget: int) -> None:
        self.backbone, self.budget = backbone, budget
        self.kept = 0
        self._stretches: dict[tuple[Tokens, Tokens], Stretch] = {}

    def __contains__(self, step: Plan) -> bool:
        return (step.head, step.text) in self._stretches

    def head(self, tokens: Tokens) -> Stretch:
        """Keys and values of hard text at the beginning; kept whatever the budget, there is one per template."""
        if ((), tokens) not in self._stretches:
            self._keep(((), tokens), self._read([tokens], None)[0])
        return self._stretches[((), tokens)]

    def texts(self, plans: Sequence[Plan]) -> list[Stretch]:
        """Keys and values of each plan's text, in order."""
        found = self._known(plans)
        missing = [p for p in plans if (p.head, p.text) not in found]
        for chunk in chunks(missing):
            for key, stretch in self._read_chunk(chunk):
                found[key] = stretch
        return [found[p.head, p.text] for p in plans]

    def read_ahead(self, plans: Iterable[Plan], progress: Callable[[int], None] = lambda texts: None) -> int:
        """Read texts before they are needed, for as long as the budget lasts.

        Args:
            progress: told how many texts were read, chunk by chunk.

        Returns:
            How many texts are left to be read again whenever they are needed.
        """
        missing = [p for p in plans if p.text and p not in self]
        missing = list({(p.head, p.text): p for p in missing}.values())
        left = len(missing)
        for chunk in chunks(missing):
            for key, stretch in self._read_chunk(chunk):
                if self.kept + stretch.nbytes > self.budget:
                    return left
                self._keep(key, stretch)
                left -= 1
            progress(len(chunk))
        return left

    def forget(self) -> None:
        """Drop everything that is kept: what goes on serving is read again when it is next needed."""
        self._stretches.clear()
        self.kept = 0

    def _known(self, plans: Sequence[Plan]) -> dict[tuple[Tokens, Tokens], Stretch]:
        keys = {(p.head, p.text) for p in plans}
        return {key: self._stretches[key] for key in keys if key in self._stretches}

    def _keep(self, key: tuple[Tokens, Tokens], stretch: Stretch) -> None:
        self._stretches[key] = stretch
        self.kept += stretch.nbytes

    def _read_chunk(self, chunk: Sequence[Plan]) -> list[tuple[tuple[Tokens, Tokens], Stretch]]:
        head = chunk[0].head
        stretches = self._read([p.text for p in chunk], self.head(head) if head else None)
        return [((head, p.text), stretch) for p, stretch in zip(chunk, stretches, strict=True)]

    @torch.no_grad()
    def _read(self, sequences: Sequence[Tokens], head: Stretch | None) -> list[Stretch]:
        batch = Batch.of(sequences).to(self.backbone.device)
        context = Context.of([[head]]) if head else None
        return [s.copy() for s in self.backbone.read(self.backbone.embed(batch.ids), batch.mask, context)]


def chunks(plans: Sequence[Plan]) -> Iterable[list[Plan]]:
    """Texts behind one head and of like length together, `CHUNK` tokens at a time; each text once."""
    unique = {(p.head, p.text): p for p in plans}
    chunk: list[Plan] = []
    for plan in sorted(unique.values(), key=lambda p: (p.head, len(p.text))):
        if chunk and (chunk[0].head != plan.head or (len(chunk) + 1) * len(plan.text) > CHUNK):
            yield chunk
            chunk = []
        chunk.append(plan)
    if chunk:
        yield chunk
