"""A prompt with everything that is known of it; `softprompt.artifact` writes and reads it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from softprompt.backbone.backbone import Backbone
from softprompt.errors import MismatchError
from softprompt.prompts.head import Head
from softprompt.prompts.method import Method
from softprompt.prompts.prompt import Values
from softprompt.text.task import Task

HEAD = "head."
"""What stands before the names of a head's tensors."""

_LOG = logging.getLogger("softprompt")


@dataclass(frozen=True)
class TrainingState:
    """What going on training needs.

    Attributes:
        parameters: the parametrization's state, by name.
        start: what is served, before the first step, by name, as in `SavedPrompt.tensors`.
    """

    parameters: Mapping[str, Tensor]
    start: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class SavedPrompt:
    """A prompt with everything that is known of it.

    Attributes:
        method: the method and its settings.
        task: template (all slots with their lengths), labels, target.
        values: what the slots are filled with, float32.
        backbone_name: the model, as it was asked for.
        backbone_fingerprint: see `Backbone`.
        tokenizer_fingerprint: see `Backbone`.
        dtype: of the backbone while training.
        training: facts of the training run.
        metrics: on the evaluation rows.
        state: what going on training needs; None where it was not read.
        head: the trained head, of a task that has one.
    """

    method: Method
    task: Task
    values: Values
    backbone_name: str
    backbone_fingerprint: str
    tokenizer_fingerprint: str
    dtype: str
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: TrainingState | None = None
    head: Head | None = None

    @property
    def nbytes(self) -> int:
        """Size of what serving needs, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    @property
    def inside(self) -> bool:
        """Whether it stands inside the attention."""
        return self.values.inside is not None

    def tensors(self) -> dict[str, Tensor]:
        """What serving needs, by name: the values, and the head where there is one."""
        head = {} if self.head is None else {HEAD + name: t for name, t in self.head.tensors().items()}
        return self.values.tensors() | head

    @property
    def quantization(self) -> str | None:
        """How the weights of the backbone were kept in fewer bits while training, as `Backbone.load` calls it."""
        found = self.training.get("quantization")
        return found if isinstance(found, str) else None

    def note_quantization(self, backbone: Backbone, name: str) -> bool:
        """Warn, and tell, where it was learned before weights that were quantised in another way than the backbone's.

        Args:
            name: how the warning calls the prompt.
        """
        then = self.quantization or ("quantised" if self.training.get("quantized") else "whole")
        now = backbone.quantization or ("quantised" if backbone.quantized else "whole")
        # A model that was handed over quantised does not say how.
        unsaid = "quantised" in (then, now) and "whole" not in (then, now)
        differs = "quantized" in self.training and then != now and not unsaid
        if differs:
            _LOG.warning(
                "%s: it was learned before %s weights, and those of %s are %s: it may be worse than was measured.",
                name,
                then,
                backbone.name or "this model",
                now,
            )
        return differs

    def check(self, backbone: Backbone, name: str) -> None:
        """See that the prompt belongs to a backbone.

        Args:
            name: how an error calls the prompt.

        Raises:
            MismatchError: it was learned for another model or tokenizer.
        """
        misfit = self.values.misfit(backbone.hidden_size, backbone.site_shapes)
        if misfit is None and self.head is not None and self.head.weight.shape[1] != backbone.state_size:
            misfit = (
                f"its head reads states of {self.head.weight.shape[1]} numbers, the model's are {backbone.state_size}"
            )
        if misfit is not None:
            raise MismatchError(
                f"it does not fit {backbone.name!r}: {misfit}",
                where=name,
                instead=f"Load {self.backbone_name!r}, which it was trained for.",
            )
        for kind, mine, theirs in (
            ("model", self.backbone_fingerprint, backbone.fingerprint),
            ("tokenizer", self.tokenizer_fingerprint, backbone.tokenizer_fingerprint),
        ):
            if mine != theirs:
                raise MismatchError(
                    f"it was trained for {self.backbone_name!r} ({kind} fingerprint {mine}), "
                    f"not for {backbone.name!r} ({theirs})",
                    where=name,
                    instead=f"Load {self.backbone_name!r} as it was then, or train the prompt for this {kind}.",
                )
