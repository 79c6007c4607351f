"""Multitask prompt tuning: one prompt for all tasks, low-rank factors for each (Wang et al. 2023, arXiv 2303.02861)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from softprompt.checks import check_whole
from softprompt.errors import SettingsError
from softprompt.prompts.initialize import Init, check_init, initialize
from softprompt.prompts.method import Host, Method, Parametrization
from softprompt.prompts.prompt import VirtualTokens

_SHARED, _LEFT, _RIGHT = "shared", "left.0", "right.0"
"""What a task's own state holds, by name."""


@dataclass(frozen=True)
class MultitaskPromptTuning(Method):
    """Task k's prompt is `P* o (u_k v_k^T)`: P* `[P, D]` is shared, u_k `[P, r]` and v_k `[r, D]` are the task's own.

    `train_sources` trains P* and the factors of several tasks at once (section 3.2 of the paper); `train` with its
    folder as `start` begins from P* and the average of the factors (section 3.3); `train` without a start trains one
    task from scratch.

    Deviations: the paper has rank 1; here rank r is the sum of r outer products. The paper trains with Adafactor; the
    defaults here are AdamW and far fewer steps. Factors start so that `u v^T` is exactly one everywhere, so the prompt
    starts as P* does: ones in the first outer product; in each further one a random u (so that they differ from one
    another, or they would stay the same for ever) against a v of zeros. All tasks start with the same factors, so that
    their averages mean something; their rows tell them apart at the first step.

    Attributes:
        tokens: P of each slot whose template does not say how many.
        rank: r.
        init: where P* starts; see `PromptTuning`. With "labels", several tasks share their label words.
        text: the words to start from, for init="text".
        factor_rate: learning rate of the factors, as a multiple of that of P*. The paper's are 0.4 and 0.3, as far as
            we could find out; the default is their ratio.

    Raises:
        SettingsError: a value is out of range, or a text without init="text" or the other way round.
    """

    NAME: ClassVar[str] = "multitask"
    LEARNS: ClassVar[bool] = True
    LEARNING_RATE: ClassVar[float] = 5e-3
    SHARES: ClassVar[bool] = True

    tokens: int = 20
    rank: int = 1
    init: Init = "vocabulary"
    text: str | None = None
    factor_rate: float = 4 / 3

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens)
        check_whole("rank", self.rank)
        check_init(self.init, self.text)
        rate = self.factor_rate
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= _MAX_FACTOR_RATE:
            raise SettingsError(
                f"factor_rate is {rate!r}",
                where="factor_rate",
                instead=f"Give a positive number up to {_MAX_FACTOR_RATE}, such as 1.",
            )

    def slot_length(self) -> int:
        return self.tokens

    def build(self, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        return self.build_for(1, tokens, host, generator)

    def build_for(self, tasks: int, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        start = initialize(self.init, tokens, host, generator, self.text)
        return _Decomposed(start, tasks, self.rank, float(self.factor_rate), generator)


_MAX_FACTOR_RATE = 1000


class _Decomposed(Parametrization):
    """P* `[P, D]`, and for each of K tasks u `[P, r]` and v `[r, D]`.

    A task's factors are parameters of their own: a step without rows of the task gives them no gradient, and so does
    not move them, where a zero would let AdamW's momentum go on.
    """

    def __init__(self, start: Tensor, tasks: int, rank: int, factor_rate: float, generator: torch.Generator) -> None:
        super().__init__()
        (tokens, width), self.factor_rate = start.shape, factor_rate
        further = torch.randn(tokens, rank - 1, generator=generator)
        left = torch.cat([torch.ones(tokens, 1), further], dim=1)
        right = torch.cat([torch.ones(1, width), torch.zeros(rank - 1, width)])
        self.shared = nn.Parameter(start)
        self.left = nn.ParameterList([left.clone() for _ in range(tasks)])
        self.right = nn.ParameterList([right.clone() for _ in range(tasks)])

    def forward(self, task: int = 0) -> VirtualTokens:
        return VirtualTokens(self.shared * (self.left[task] @ self.right[task]))

    def after_step(self) -> None:
        pass

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"shared": [self.shared], "factors": [*self.left, *self.right]}

    def learned_by(self, task: int = 0) -> list[nn.Parameter]:
        return [self.shared, self.left[task], self.right[task]]

    def rates(self) -> dict[str, float]:
        return {"factors": self.factor_rate}

    def state_of(self, task: int = 0) -> dict[str, Tensor]:
        return {_SHARED: self.shared, _LEFT: self.left[task], _RIGHT: self.right[task]}

    @torch.no_grad()
    def begin_from(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """P* of the states, which must be the same in all, and the averages of their u and v for every task."""
        for state in states:
            self._check(state)
        if any(not torch.equal(state[_SHARED], states[0][_SHARED]) for state in states):
            raise SettingsError(
                f"these {len(states)} prompts do not share one prompt: they were not trained together",
                instead="Give the folder that train_sources wrote, or one prompt.",
            )
        self.shared.copy_(states[0][_SHARED])
        for left, right in zip(self.left, self.right, strict=True):
            left.copy_(torch.stack([state[_LEFT] for state in states]).mean(dim=0))
            right.copy_(torch.stack([state[_RIGHT] for state in states]).mean(dim=0))

    def _check(self, state: Mapping[str, Tensor]) -> None:
        """
        Raises:
            SettingsError: the state is of another length, rank or width; the message says which.
        """
        own = self.state_of()
        fits = state.keys() == own.keys() and all(t.ndim == 2 for t in state.values())
        shapes = (
            {
                "P (virtual tokens)": (state[_SHARED].shape[0], own[_SHARED].shape[0]),
                "rank": (state[_LEFT].shape[1], own[_LEFT].shape[1]),
                "D (width)": (state[_SHARED].shape[1], own[_SHARED].shape[1]),
            }
            if fits
            else {"parameters": (sorted(state), sorted(own))}
        )
        for what, (theirs, asked) in shapes.items():
            if theirs != asked:
                raise SettingsError(
                    f"its {what} is {theirs}, that asked for {asked}",
                    instead="Give the settings and the slots' lengths that it was trained with.",
                )
