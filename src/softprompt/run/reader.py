"""Texts that are read once and kept: the keys and values of what no prompt can change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from softprompt.backbone.backbone import Backbone
from softprompt.backbone.context import Context, Stretch
from softprompt.run.plan import Plan, Tokens
from softprompt.text.batch import Batch

Key = tuple[Tokens, Tokens]
"""The tokens before a text, and its own."""

# Files that are held open; a process may have 65,530 parts of memory mapped.
MAPPED = 20_000

# Tokens run at once while reading: enough to keep the processor busy, few enough to bound memory.
CHUNK = 2048


class Reader:
    """Reads head and example texts, and keeps those it was asked to read ahead, while a budget lasts.

    What is not kept is read again whenever it is needed: nothing is kept in memory by the way, so that what is kept,
    and with it every last bit of a result, does not depend on the order of the batches. A text is known by all the
    tokens before and in it, so a changed template or row is another text. One reader serves one backbone.

    Where the backbone has a cache on disk, texts are looked for there first, and all that are read are kept there: what
    is mapped from a file takes nothing of the budget.

    Attributes:
        budget: bytes that may be kept in memory.
        kept: bytes that are.
        found: how many texts came from the cache on disk.
        ran: tokens of texts that were run, as often as they were.
    """

    def __init__(self, backbone: Backbone, budget: int) -> None:
        self.backbone, self.budget = backbone, budget
        self.kept = self.found = self.ran = 0
        self._stretches: dict[Key, Stretch] = {}
        self._mapped = 0

    def __contains__(self, step: Plan) -> bool:
        return (step.head, step.text) in self._stretches

    def head(self, tokens: Tokens) -> Stretch:
        """Keys and values of hard text at the beginning; kept whatever the budget, there is one per template."""
        if ((), tokens) not in self._stretches:
            stretch = self._read([tokens], None)[0]
            self._stretches[(), tokens] = stretch
            self.kept += stretch.nbytes
        return self._stretches[((), tokens)]

    def texts(self, plans: Sequence[Plan]) -> list[Stretch]:
        """Keys and values of each plan's text, in order."""
        found: dict[Key, Stretch] = {}
        for p in plans:
            known = None if (p.head, p.text) in found else self._known((p.head, p.text))
            if known is not None:
                found[p.head, p.text] = known
        for chunk in chunks([p for p in plans if (p.head, p.text) not in found]):
            for key, stretch in self._read_chunk(chunk):
                found[key] = stretch
                self._shelve(key, stretch)
        device, dtype = self.backbone.device, self.backbone.dtype
        ready = {key: stretch.to(device, dtype) for key, stretch in found.items()}
        return [ready[p.head, p.text] for p in plans]

    def read_ahead(self, plans: Iterable[Plan], progress: Callable[[int], None] = lambda texts: None) -> int:
        """Read texts before they are needed, for as long as the budget lasts.

        Args:
            progress: told how many texts were read, chunk by chunk.

        Returns:
            How many texts are left to be read again whenever they are needed.
        """
        wanted = {(p.head, p.text): p for p in plans if p.text and p not in self}
        missing = {}
        for key, p in wanted.items():
            stretch = self._from_shelf(key)
            if stretch is None:
                missing[key] = p
            else:
                # Beyond the budget it is found there again.
                self._keep(key, stretch)
                progress(1)
        left = len(missing)
        for chunk in chunks(list(missing.values())):
            for key, stretch in self._read_chunk(chunk):
                shelved = self._shelve(key, stretch)
                if not self._keep(key, shelved or stretch) and shelved is None:
                    return left
                left -= 1
            progress(len(chunk))
        return left

    def forget(self) -> None:
        """Drop everything that is kept: what goes on serving is read again when it is next needed."""
        self._stretches.clear()
        self.kept = self._mapped = 0

    def _known(self, key: Key) -> Stretch | None:
        return self._stretches.get(key) or self._from_shelf(key)

    def _keep(self, key: Key, stretch: Stretch) -> bool:
        """Keep what a text left, if there is room; tells whether there was."""
        if stretch.mapped and self.backbone.device.type == "cpu" and self._mapped < MAPPED:
            self._mapped += 1
        else:
            if stretch.mapped:
                stretch = stretch.copy()
            stretch = stretch.to(self.backbone.device, stretch.keys[0].dtype)
            if self.kept + stretch.nbytes > self.budget:
                return False
            self.kept += stretch.nbytes
        self._stretches[key] = stretch
        return True

    def _from_shelf(self, key: Key) -> Stretch | None:
        stretch = None if self.backbone.shelf is None else self.backbone.shelf.find(*key)
        self.found += stretch is not None
        return stretch

    def _shelve(self, key: Key, stretch: Stretch) -> Stretch | None:
        """Keep what a text left on disk, where there is a place for it; as it is found there."""
        shelf = self.backbone.shelf
        return shelf.find(*key) if shelf is not None and shelf.keep(*key, stretch) else None

    def _read_chunk(self, chunk: Sequence[Plan]) -> list[tuple[Key, Stretch]]:
        head = chunk[0].head
        self.ran += sum(len(p.text) for p in chunk)
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
