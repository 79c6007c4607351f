"""Prompts that are trained side by side and have nothing in common but the model and the rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from softprompt.prompts.head import Head
from softprompt.prompts.method import Asked, Parametrization
from softprompt.prompts.prompt import Values


class Several(Parametrization):
    """N parametrizations of one task each, as one of N tasks."""

    def __init__(self, members: Sequence[Parametrization]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def parts(self) -> tuple[Parametrization, ...]:
        return tuple(self._member(k) for k in range(len(self.members)))

    def _member(self, task: int) -> Parametrization:
        member = self.members[task]
        assert isinstance(member, Parametrization), "it was given such"
        return member

    def forward(self, task: int = 0) -> Values:
        return self._member(task)()

    def asked(self, task: int = 0) -> tuple[Asked, ...]:
        return self._member(task).asked()

    def head_for(self, task: int = 0) -> Head | None:
        return self._member(task).head_for()

    def after_step(self) -> None:
        for part in self.parts():
            part.after_step()

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {f"{k}.{name}": group for k, part in enumerate(self.parts()) for name, group in part.groups().items()}

    def learned_by(self, task: int = 0) -> list[nn.Parameter]:
        return self._member(task).learned_by()

    def rates(self) -> dict[str, float]:
        return {f"{k}.{name}": rate for k, part in enumerate(self.parts()) for name, rate in part.rates().items()}

    def state_of(self, task: int = 0) -> dict[str, Tensor]:
        return self._member(task).state_of()
