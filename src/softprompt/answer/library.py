"""The prompts that can be asked, by name: taken in, loaded when they are first asked, kept by least recent use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.answer.answers import Request
from softprompt.answer.requests import CLASSIFYING, AskedRow, Ensemble, Entry, Reading, check_request, no_writers
from softprompt.arguments import check_arguments
from softprompt.backbone.backbone import Backbone
from softprompt.checks import check_whole
from softprompt.collection import SavedPrompts, load_any, stamped
from softprompt.errors import ArtifactError, SettingsError, SoftpromptError, UnknownPromptError
from softprompt.run.forward import Filling
from softprompt.run.maker import example_maker
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task
from softprompt.text.template import Target

Source = str | Path | SavedPrompt | SavedPrompts
"""The folder of a saved prompt or of an ensemble; or such a prompt, such an ensemble."""


@dataclass
class _Shelf:
    """A place in the library.

    Attributes:
        folder: where its prompt is loaded from; None where it was handed over.
        stamp: of the folder when it was taken in.
        entry: None while it is on disk alone.
    """

    folder: Path | None
    stamp: str | None
    entry: Entry | Ensemble | None

    @property
    def nbytes(self) -> int:
        """What it takes of memory: its values, and the keys and values they were compiled to."""
        if self.entry is None:
            return 0
        compiled = sum(s.nbytes for e in self.entry.members for own in e.compiled.values() for s in own)
        return self.entry.prompt.nbytes + compiled

    def put_away(self) -> None:
        """Keep no more of it than has to be kept."""
        if self.folder is not None:
            self.entry = None
        elif self.entry is not None:
            for member in self.entry.members:
                member.compiled.clear()


class Library:
    """Prompts for one backbone, by name.

    What stands in front of every row of a prompt is compiled to keys and values at its first row. Both, the prompt and
    what it was compiled to, are kept until all that is kept takes more than `budget`; what was not asked for longest
    then goes first, and comes back from its folder when it is next asked. A prompt that was handed over, and not read
    from a folder, keeps its values.

    Attributes:
        backbone: the frozen model.
        budget: bytes; None for no bound.
    """

    def __init__(self, backbone: Backbone, budget: int | None = None) -> None:
        """
        Raises:
            SettingsError: a budget below 1.
        """
        if budget is not None:
            check_whole("budget", budget)
        self.backbone, self.budget = backbone, budget
        # In the order of their last use.
        self._shelves: dict[str, _Shelf] = {}

    @property
    def prompts(self) -> Mapping[str, SavedPrompt | SavedPrompts]:
        """Those that are in memory, by name."""
        return {name: shelf.entry.prompt for name, shelf in self._shelves.items() if shelf.entry is not None}

    @property
    def folders(self) -> Mapping[str, Path | None]:
        """All prompts, the last asked last: where each is loaded from, None where it was handed over."""
        return {name: shelf.folder for name, shelf in self._shelves.items()}

    @property
    def nbytes(self) -> int:
        """Size of all that is kept in memory, in bytes."""
        return sum(shelf.nbytes for shelf in self._shelves.values())

    def add(self, name: str, prompt: Source, *, replace: bool = False) -> None:
        """Take a prompt in, or an ensemble that answers as one; arguments and errors as in `Engine.add`."""
        if not name or (name in self._shelves and not replace):
            raise SettingsError(
                f"there is a prompt called {name!r} already" if name else "a prompt needs a name",
                where="name",
                instead="Give another name, or replace=True." if name else "Give one.",
            )
        check_arguments(folder=prompt)
        if isinstance(prompt, (SavedPrompt, SavedPrompts)):
            prompt.check(self.backbone, name)
            shelf = _Shelf(None, None, self._taken_in(prompt, name))
        else:
            folder, stamp = Path(prompt), stamped(prompt)
            shelf = _Shelf(folder, stamp, self._taken_in(load_any(folder, self.backbone), str(folder)))
        assert shelf.entry is not None
        shelf.entry.prompt.note_quantization(self.backbone, name)
        self._shelves.pop(name, None)
        self._shelves[name] = shelf
        self.trim()

    def remove(self, name: str) -> None:
        """Forget a prompt.

        Raises:
            UnknownPromptError: there is none of that name.
        """
        self._shelf(name)
        del self._shelves[name]

    def entry(self, name: str) -> Entry | Ensemble:
        """A prompt, ready to be asked.

        Raises:
            UnknownPromptError: there is none of that name.
            ArtifactError: it has to be loaded again, and its folder cannot be read or holds another prompt by now.
        """
        shelf = self._shelf(name)
        if shelf.entry is None:
            assert shelf.folder is not None, "what has no folder is never put away"
            if stamped(shelf.folder) != shelf.stamp:
                raise ArtifactError(
                    "it was written anew since it was taken in",
                    where=str(shelf.folder),
                    instead=f"Take it in again, in the place of {name!r}.",
                )
            shelf.entry = self._taken_in(load_any(shelf.folder, self.backbone), str(shelf.folder))
        self._shelves[name] = self._shelves.pop(name)
        return shelf.entry

    def read(
        self,
        requests: Sequence[Request],
        example: Reading,
        *,
        alone: bool = False,
    ) -> list[tuple[AskedRow, ...]]:
        """Read requests, all of them before the first is answered.

        Args:
            example: reads a row for a prompt.
            alone: whether only single prompts may be asked; ensembles may where they choose labels.

        Returns:
            For each request what is asked: of one prompt, or of each of an ensemble.
        """
        found = []
        for number, request in enumerate(requests, 1):
            check_request(request, number)
            name, row = request
            where = f"request {number} ({name})"
            try:
                entry = self.entry(name)
                if isinstance(entry, Ensemble) and (alone or entry.prompt.task.kind not in CLASSIFYING):
                    raise no_writers(entry.prompt)
                named = getattr(row, "where", None) or where
                found.append(tuple(AskedRow(row, member, example(member, row, named)) for member in entry.members))
            except SoftpromptError as error:
                error.where = error.where or where
                raise
        return found

    def read_alone(self, requests: Sequence[Request], example: Reading) -> list[AskedRow]:
        """The same, of single prompts."""
        return [asked for (asked,) in self.read(requests, example, alone=True)]

    def trim(self) -> None:
        """Put away what was not asked for longest, until what is kept fits; never the last that was."""
        if self.budget is None:
            return
        kept, last = self.nbytes, next(reversed(self._shelves), None)
        for name, shelf in self._shelves.items():
            if kept <= self.budget or name == last:
                return
            kept -= shelf.nbytes
            shelf.put_away()
            kept += shelf.nbytes

    def _shelf(self, name: str) -> _Shelf:
        if name not in self._shelves:
            known = ", ".join(self._shelves) or "none"
            raise UnknownPromptError(f"there is no prompt called {name!r}", instead=f"There are: {known}.")
        return self._shelves[name]

    def _taken_in(self, saved: SavedPrompt | SavedPrompts, where: str) -> Entry | Ensemble:
        if isinstance(saved, SavedPrompts):
            saved.check_ensemble(where)
            return Ensemble(saved, tuple(self._entry(member) for member in saved.members.values()))
        return self._entry(saved)

    def _entry(self, saved: SavedPrompt) -> Entry:
        maker, writer = example_maker(self.backbone, saved.task, inside=saved.inside), None
        if isinstance(saved.task.template.target, Target):
            # Whoever has a label generated, not chosen, needs room for as much as is generated.
            spoken = Task(saved.task.template, max_length=saved.task.max_length)
            writer = example_maker(self.backbone, spoken, inside=saved.inside)
        return Entry(saved, maker, writer, Filling(saved.values, {}))
