"""How a prompt is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from softprompt.checks import check_flag, check_whole
from softprompt.errors import SettingsError
from softprompt.run.forward import BUDGET

Loss = Literal["labels", "vocabulary"]

MAX_SEED = 2**32 - 1
"""The largest that every source of random numbers takes."""

MAX_LEARNING_RATE = 1e30
"""Far beyond sense; AdamW's own arithmetic overflows a little above."""


@dataclass(frozen=True)
class Settings:
    """The settings of one training run.

    Attributes:
        steps: optimizer updates.
        batch_size: rows per update.
        learning_rate: of AdamW, for everything that is learned; None for the method's own, and 5e-3 for a head.
        schedule: "linear" (down to zero), "cosine" or "constant".
        warmup: share of the steps over which the learning rate rises from zero.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        seed: of the init and of the order of the rows.
        eval_every: steps between evaluations; None for three in all. The best evaluation's prompt is kept.
        eval_batch_size: rows per evaluation batch.
        loss: "labels" (among the label words alone) or "vocabulary" (as in the papers, and always for generation and
            where label words share their first token).
        group_by_length: whether rows of like length stand in one step: less padding, and an order of the rows that is
            random but for that. For one task, or several seeds of one.
        cache_bytes: how much may be taken for the keys and values of texts that are read once; what does not fit is
            read again at every step.

    Raises:
        SettingsError: a value is out of range; the message names it.
    """

    steps: int = 150
    batch_size: int = 16
    learning_rate: float | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.06
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    eval_every: int | None = None
    eval_batch_size: int = 32
    loss: Loss = "labels"
    group_by_length: bool = False
    cache_bytes: int = BUDGET

    MEASURING: ClassVar[tuple[str, ...]] = ("eval_batch_size", "cache_bytes", "seed")
    """What matters where nothing is learned, too."""

    COMPUTING: ClassVar[tuple[str, ...]] = ("eval_batch_size", "cache_bytes")
    """What decides how much is computed or kept at once, and nothing about the outcome but its rounding."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("eval_batch_size", 1), ("seed", 0), ("cache_bytes", 0)):
            check_whole(name, getattr(self, name), least)
        if self.eval_every is not None:
            check_whole("eval_every", self.eval_every)
        check_flag("group_by_length", self.group_by_length)
        for name in ("learning_rate", "warmup", "weight_decay", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise SettingsError(f"{name} is {value!r}", where=name, instead="Give a number.")
        if self.learning_rate is not None and self.learning_rate > MAX_LEARNING_RATE:
            raise SettingsError(
                f"learning_rate is {self.learning_rate}", where="learning_rate", instead="Give a number such as 0.005."
            )
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"{name} is {value}", where=name, instead="Give a positive number.")
        if not self.weight_decay >= 0:
            raise SettingsError(f"weight_decay is {self.weight_decay}", where="weight_decay", instead="Give 0 or more.")
        if self.seed > MAX_SEED:
            raise SettingsError(f"seed is {self.seed}", where="seed", instead=f"Give {MAX_SEED} or less.")
        if not 0 <= self.warmup < 1:
            raise SettingsError(f"warmup is {self.warmup}", where="warmup", instead="Give a share from 0 to 1.")
        for name, known in (("schedule", ("linear", "cosine", "constant")), ("loss", ("labels", "vocabulary"))):
            if getattr(self, name) not in known:
                raise SettingsError(
                    f"{name} {getattr(self, name)!r} is unknown", where=name, instead=f"Use one of {', '.join(known)}."
                )

    @classmethod
    def of(cls, settings: Self | None, options: Mapping[str, Any]) -> Self:
        """Settings, changed by options that are called as their attributes are.

        Raises:
            SettingsError: there is no such attribute, or a value is out of range.
        """
        unknown = set(options) - set(cls.known())
        if unknown:
            raise SettingsError(
                f"there is no setting {', '.join(sorted(unknown))}", instead=f"There are {', '.join(cls.known())}."
            )
        return replace(settings or cls(), **options)

    def facts(self) -> dict[str, Any]:
        """The settings by name, as JSON can hold them."""
        return asdict(self)

    def deciding(self) -> dict[str, Any]:
        """Those of `facts` that decide about the outcome."""
        return {name: value for name, value in self.facts().items() if name not in self.COMPUTING}

    @classmethod
    def known(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))
