"""What every method is: settings, and the parameters that they are turned into for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from softprompt.errors import SettingsError, TemplateError
from softprompt.prompts.prompt import Sites, Values
from softprompt.text.task import Task
from softprompt.text.template import Slot, Target, Template

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
    """

    size: int
    width: int
    special: frozenset[int]
    encode: Callable[[str], list[int]]
    embed: Callable[[Tensor], Tensor]
    labels: tuple[tuple[int, ...], ...] = ()
    sites: Sites = field(default_factory=dict)
    attend: Callable[[Tensor], Pair] | None = None


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


@dataclass(frozen=True)
class Method(ABC):
    """The settings of a method.

    Attributes:
        NAME: how files and the command line call it.
        LEARNS: whether there is anything to train.
        LEARNING_RATE: what AdamW trains it with unless told otherwise.
        INSIDE: whether what is learned stands inside the attention, before all tokens, and not at the input.
    """

    NAME: ClassVar[str]
    LEARNS: ClassVar[bool]
    LEARNING_RATE: ClassVar[float]
    INSIDE: ClassVar[bool] = False

    @abstractmethod
    def slot_length(self) -> int:
        """Virtual tokens in a slot whose template does not say how many; 0 where there can be no slot."""

    @abstractmethod
    def build(self, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        """Parameters at their starting point.

        Args:
            tokens: P, virtual tokens of the whole template.
            host: the model.
            generator: the source of whatever is random.
        """

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """What may be set."""
        return tuple(f.name for f in fields(cls))

    def settings(self) -> dict[str, Any]:
        """The settings by name, as JSON can hold them."""
        return {name: getattr(self, name) for name in self.setting_names()}


def check_tokens(tokens: object) -> None:
    """
    Raises:
        SettingsError: it is no number of 1 or more.
    """
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise SettingsError(f"tokens is {tokens!r}", where="tokens", instead="Give a number of 1 or more.")


def count(parameters: Sequence[nn.Parameter]) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in parameters)


def resolve_task(task: Task, method: Method) -> Task:
    """The task with a slot in front where it has none, and the method's length in slots that do not say theirs.

    Raises:
        TemplateError: there is a slot, but the method fills none.
    """
    if not method.LEARNS:
        if task.template.slots:
            raise TemplateError(
                f"a {method.NAME} fills no slot",
                where=f"template {task.template.source!r}",
                instead="Take {soft} out, or use a method that learns, such as prompt-tuning.",
            )
        return task
    template = task.template.with_slot_in_front().with_lengths(method.slot_length())
    if method.INSIDE:
        template = _everything_behind_the_slot(template, method)
    return task.with_template(template)


def _everything_behind_the_slot(template: Template, method: Method) -> Template:
    if len(template.slots) != 1 or template.segments[0] not in template.slots:
        raise TemplateError(
            f"a {method.NAME} prompt stands before everything else, in one slot",
            where=f"template {template.source!r}",
            instead="Take {soft} out, or put it in front, once; prompt-tuning and p-tuning have slots anywhere.",
        )
    if all(isinstance(segment, (Slot, Target)) for segment in template.segments):
        raise TemplateError(
            "there is nothing behind the slot to attend to it",
            where=f"template {template.source!r}",
            instead="Put a field or some text there (before {label}, if that stands in it).",
        )
    return template.with_start_behind_front_slot()
