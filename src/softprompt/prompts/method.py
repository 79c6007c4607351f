"""What every method is: settings, and the parameters that they are turned into for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from softprompt.errors import SettingsError, SourceError, TemplateError
from softprompt.prompts.prompt import Sites, Values
from softprompt.text.task import Task
from softprompt.text.template import Slot, Start, Target, Template
from softprompt.text.worked import Recipe, WorkedExamples

if TYPE_CHECKING:
    from softprompt.prompts.head import Head

Pair = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Keys and values, one tensor per attention site each."""


@dataclass(frozen=True)
class Host:
    """What a method may know of the model whose prompt it makes.

    Attributes:
        size: V, entries of the embedding table.
        width: D, the width of an embedding.
        special: ids that stand for no text.
        encode: token ids of a text.
        embed: `[n]` int64 ids to `[n, D]` float32 embeddings, as the model receives them.
        labels: the task's label words as token ids; empty for generation.
        sites: where it attends; empty where its attention cannot be reached.
        attend: `[n, D]` embeddings to the keys and values, one `[n, H, E]` per site, that they leave behind at
            positions 0 to n - 1; None where the attention cannot be reached.
        worked: the worked examples that the method asked for; None where it asked for none.
    """

    size: int
    width: int
    special: frozenset[int]
    encode: Callable[[str], list[int]]
    embed: Callable[[Tensor], Tensor]
    labels: tuple[tuple[int, ...], ...] = ()
    sites: Sites = field(default_factory=dict)
    attend: Callable[[Tensor], Pair] | None = None
    worked: WorkedExamples | None = None


@dataclass(frozen=True)
class Asked:
    """A token of the prompt itself that the model is to predict.

    Attributes:
        behind: the virtual token, from 0, behind which it is predicted.
        token: what is to be predicted.
        weight: of its loss; that of the row's own answer is 1.
    """

    behind: int
    token: int
    weight: float


class Parametrization(nn.Module, ABC):
    """The parameters of a method, for as long as they are trained."""

    @abstractmethod
    def forward(self, task: int = 0) -> Values:
        """The prompt of a task as it stands, with gradients."""

    def asked(self, task: int = 0) -> tuple[Asked, ...]:
        """What of the prompt the model is to predict, too; most methods ask for nothing."""
        return ()

    def head_for(self, task: int = 0) -> Head | None:
        """The head that is trained with the prompt, where the task has one."""
        return None

    @abstractmethod
    def after_step(self) -> None:
        """Called after each optimizer update: projections, bounds."""

    @abstractmethod
    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by name of group; a learning rate may be given for each."""

    def learned_by(self, task: int = 0) -> list[nn.Parameter]:
        """The parameters that the prompt of a task is learned by; some of them may be other tasks', too."""
        return [p for group in self.groups().values() for p in group]

    def rates(self) -> dict[str, float]:
        """For groups that are trained faster or slower than the learning rate says: by how many times."""
        return {}

    def parts(self) -> tuple[Parametrization, ...]:
        """What learns on its own: gradients are clipped, and the best evaluation is kept, for each part by itself."""
        return (self,)

    def state_of(self, task: int = 0) -> dict[str, Tensor]:
        """What the prompt of a task is made of, by the names that the state of a parametrization of it alone has."""
        return self.state_dict()

    def begin_from(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Take saved prompts for the start; one of them, unless the method knows what to make of more.

        Args:
            states: what `state_of` gave of each.

        Raises:
            SettingsError: there are too many of them, or one is of another shape.
        """
        if len(states) > 1:
            raise SettingsError(f"it takes one prompt, not {len(states)}", instead="Give the folder of one of them.")
        (state,) = states
        own, theirs = ({name: list(t.shape) for name, t in s.items()} for s in (self.state_dict(), state))
        if own != theirs:
            raise SettingsError(
                f"what it learned is {_shapes(theirs)}, what is asked for {_shapes(own)}",
                instead="Write its slots as long as they were ({soft:N}), with the settings that it was trained with.",
            )
        self.load_state_dict(dict(state))


def _shapes(parts: Mapping[str, Sequence[int]]) -> str:
    """By name: "embeddings 10 x 576"."""
    return ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in parts.items())


@dataclass(frozen=True)
class Method(ABC):
    """The settings of a method.

    Attributes:
        NAME: how files and the command line call it.
        LEARNS: whether there is anything to train.
        LEARNING_RATE: what AdamW trains it with unless told otherwise.
        INSIDE: whether what is learned stands inside the attention, before all tokens, and not at the input.
        BACKBONES: the kinds of backbone it is for; see `Backbone.kind`.
        SHARES: whether prompts of several tasks can be learned that have something in common.
    """

    NAME: ClassVar[str]
    LEARNS: ClassVar[bool]
    LEARNING_RATE: ClassVar[float]
    INSIDE: ClassVar[bool] = False
    BACKBONES: ClassVar[tuple[str, ...]] = ("decoder", "encoder", "encoder-decoder")
    SHARES: ClassVar[bool] = False

    @abstractmethod
    def slot_length(self) -> int:
        """Virtual tokens in a slot whose template does not say how many; 0 where there can be no slot, or where worked
        examples fill it."""

    def recipe(self) -> Recipe | None:
        """The worked examples that its prompt is made of; None for most methods."""
        return None

    def worked_in(self, parameters: Mapping[str, Tensor]) -> WorkedExamples | None:
        """The worked examples in a saved state of its parameters, made by the same recipe; None for most methods."""
        return None

    @abstractmethod
    def build(self, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        """Parameters at their starting point.

        Args:
            tokens: P, virtual tokens of the whole template.
            host: the model.
            generator: the source of whatever is random.
        """

    def build_for(self, tasks: int, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        """Parameters of several tasks' prompts at their starting point; other arguments as in `build`.

        Raises:
            SettingsError: the method shares nothing between tasks.
        """
        raise shares_nothing(self)

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """What may be set."""
        return tuple(f.name for f in fields(cls))

    def settings(self) -> dict[str, Any]:
        """The settings by name, as JSON can hold them."""
        return {name: getattr(self, name) for name in self.setting_names()}


def shares_nothing(method: Method) -> SettingsError:
    """What to tell of a method that several tasks were given to."""
    return SettingsError(
        f"{method.NAME} prompts have nothing in common with each other",
        where="method",
        instead="Use multitask, or train a prompt for each task.",
    )


@contextmanager
def modules_draw_from(generator: torch.Generator) -> Iterator[None]:
    """Modules draw their weights from the global generator: it is lent this one, and gets its own state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


def count(parameters: Sequence[nn.Parameter]) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in parameters)


def check_fit(method: Method, task: Task, kind: str, name: str) -> None:
    """
    Args:
        kind: of the backbone; see `Backbone.kind`.
        name: of the backbone.

    Raises:
        SourceError: the method is not for backbones of this kind.
        SettingsError: it is not for tasks of this kind.
    """
    if method.recipe() is not None and task.kind not in ("generation", "classification"):
        raise SettingsError(
            f"a {method.NAME} prompt is made of worked examples, answered in words, and a {task.kind} is not",
            where="method",
            instead="Use prompt-tuning, p-tuning or prefix-tuning, or a classification by label words.",
        )
    if kind not in method.BACKBONES:
        raise SourceError(
            f"a {method.NAME} prompt is for a {' or '.join(method.BACKBONES)}, and this is an {kind}",
            where=name,
            instead="Use prompt-tuning, or another backbone.",
        )


def resolve_task(task: Task, method: Method, worked: WorkedExamples | None = None) -> Task:
    """The task with a slot in front where it has none, and the method's length in slots that do not say theirs.

    Args:
        worked: the worked examples that fill the slot, where the method asks for such.

    Raises:
        TemplateError: there is a slot, but the method fills none, or not there.
    """
    if not method.LEARNS:
        if task.template.slots:
            raise TemplateError(
                f"a {method.NAME} fills no slot",
                where=f"template {task.template.source!r}",
                instead="Take {soft} out, or use a method that learns, such as prompt-tuning.",
            )
        return task
    template = place_slots(task.template, method)
    template = template.with_lengths(method.slot_length() if worked is None else len(worked))
    given = sum(slot.tokens or 0 for slot in template.slots)
    if worked is not None and given != len(worked):
        raise TemplateError(
            f"its slot has {given} virtual tokens, but the worked examples are {len(worked)}",
            where=f"template {task.template.source!r}",
            instead="Write {soft}: they decide how long it is.",
        )
    return task.with_template(template)


def place_slots(template: Template, method: Method) -> Template:
    """The template of a method that learns, with a slot in front where it has none.

    Worked examples begin the text: only a `{bos}` that the template begins with stands before them.

    Raises:
        TemplateError: the method's slot stands before everything else, and the template puts it elsewhere.
    """
    begins_text = method.recipe() is not None
    template = template.with_slot_in_front(behind_start=begins_text)
    if not (method.INSIDE or begins_text):
        return template
    segments = template.segments[int(begins_text and template.segments[0] == Start()) :]
    if len(template.slots) != 1 or segments[0] not in template.slots:
        raise TemplateError(
            f"a {method.NAME} prompt stands before everything else, in one slot",
            where=f"template {template.source!r}",
            instead="Take {soft} out, or put it in front, once; prompt-tuning and p-tuning have slots anywhere.",
        )
    if all(isinstance(segment, (Slot, Target)) for segment in segments):
        raise TemplateError(
            "there is nothing behind the slot to attend to it",
            where=f"template {template.source!r}",
            instead="Put a field or some text there (before {label}, if that stands in it).",
        )
    return template.with_start_behind_front_slot() if method.INSIDE else template
