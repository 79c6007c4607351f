"""Prefix tuning: learned keys and values inside every attention (Li & Liang 2021, arXiv 2101.00190)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from softprompt.checks import check_flag, check_whole
from softprompt.errors import SettingsError, SourceError
from softprompt.prompts.initialize import check_init, initialize
from softprompt.prompts.method import Host, Method, Parametrization, modules_draw_from
from softprompt.prompts.prompt import Prefix, Sites

PrefixInit = Literal["random", "zero", "vocabulary", "text", "labels"]

# The paper's, for fitting the MLP to the keys and values of real words.
_FIT_STEPS, _FIT_RATE = 500, 1e-4
_STD = 0.02


@dataclass(frozen=True)
class PrefixTuning(Method):
    """A key and a value for each of P positions, at every attention site (section 4 of the paper).

    The prefix stands before all tokens and is seen from all of them. In a decoder it takes P positions; an encoder and
    an encoder-decoder count their own tokens alone. An encoder-decoder has three: of the encoder, of the decoder, and
    where the decoder looks at the encoder; a task that is read in the encoder uses the first alone.

    With `projection` it is written by the paper's MLP (`P_theta[i] = MLP(P'_theta[i])`: `[P, D]`, a linear layer to
    `middle`, tanh, a linear layer to all keys and values), which is thrown away after training.

    Deviations: the paper always trains through the MLP, because direct training from a random start is unstable; from
    keys and values of real tokens it is not, so the default is direct (as in P-tuning v2, arXiv 2110.07602). One MLP
    writes all three prefixes of an encoder-decoder, where the authors' code has one for each.

    Attributes:
        tokens: P.
        projection: whether the MLP writes the prefix while it is trained.
        middle: width of the MLP (the paper: 512, or 800 for summaries).
        init: "vocabulary", "text" or "labels": the keys and values that such tokens leave behind (see `PromptTuning`);
            through the MLP they are fitted by 500 steps of Adam, as in the paper. "random", or "zero" (no no-op: a zero
            key takes its share of the softmax).
        text: the words to start from, for init="text".
        sink: whether the first position keeps its start, as the attention sink it often is (Cartridges, arXiv
            2506.06266).

    Raises:
        SettingsError: a value is out of range, or settings that do not go together.
    """

    NAME: ClassVar[str] = "prefix-tuning"
    LEARNS: ClassVar[bool] = True
    LEARNING_RATE: ClassVar[float] = 5e-3
    INSIDE: ClassVar[bool] = True

    tokens: int = 20
    projection: bool = False
    middle: int = 512
    init: PrefixInit = "vocabulary"
    text: str | None = None
    sink: bool = False

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens)
        if self.init != "zero" or self.text is not None:
            check_init(self.init, self.text)
        check_whole("middle", self.middle)
        check_flag("projection", self.projection)
        check_flag("sink", self.sink)
        if self.sink and self.tokens == 1:
            raise SettingsError(
                "the only position is the sink, which is not trained", where="tokens", instead="Give 2 or more."
            )

    def slot_length(self) -> int:
        return self.tokens

    def build(self, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        if host.attend is None or not host.sites:
            raise SourceError(
                "its attention cannot be reached, so it can have no prefix",
                where="prefix-tuning",
                instead="Use prompt-tuning or p-tuning, which stand at the input.",
            )
        start = self._start(tokens, host, generator)
        if not self.projection:
            return _Direct(start, host.sites, sink=self.sink)
        with modules_draw_from(generator):
            made = _Projected(tokens, host, self.middle, start if self.sink else None)
        if self.init == "zero":
            made.zero()
        elif self.init != "random":
            made.fit(start)
        return made

    def _start(self, tokens: int, host: Host, generator: torch.Generator) -> Tensor:
        """All keys and values of P positions, side by side: `[P, sum over sites of H * (key width + value width)]`."""
        if self.init == "zero":
            return torch.zeros(tokens, width(host.sites))
        if self.init == "random":
            return _STD * torch.randn(tokens, width(host.sites), generator=generator)
        assert host.attend is not None, "build has seen to it"
        keys, values = host.attend(initialize(self.init, tokens, host, generator, self.text))
        return _joined(keys, values)


def width(sites: Sites) -> int:
    """How many numbers the keys and values of one position are, all sites together."""
    return sum(heads * (key + value) for heads, key, value in sites.values())


def _joined(keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """One `[P, H, E]` key and value per site -> `[P, width]`."""
    pairs = [t.flatten(1) for pair in zip(keys, values, strict=True) for t in pair]
    return torch.cat(pairs, dim=1).float().cpu()


def _prefix(flat: Tensor, sites: Sites) -> Prefix:
    """The inverse of `_joined`."""
    parts = iter(flat.split([h * e for h, k, v in sites.values() for e in (k, v)], dim=1))
    keys, values = [], []
    for heads, key, value in sites.values():
        keys.append(next(parts).view(-1, heads, key))
        values.append(next(parts).view(-1, heads, value))
    return Prefix(tuple(sites), tuple(keys), tuple(values))


class _Direct(Parametrization):
    """The keys and values themselves; `first` is the sink, which is not trained."""

    def __init__(self, start: Tensor, sites: Sites, *, sink: bool) -> None:
        super().__init__()
        self.sites = sites
        self.register_buffer("first", start[: int(sink)].clone())
        self.rest = nn.Parameter(start[int(sink) :].clone())

    first: Tensor

    def forward(self, task: int = 0) -> Prefix:
        return _prefix(torch.cat([self.first, self.rest]), self.sites)

    def after_step(self) -> None:
        pass

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"prefix": [self.rest]}


class _Projected(Parametrization):
    """The paper's MLP over P learned inputs."""

    def __init__(self, tokens: int, host: Host, middle: int, sink: Tensor | None) -> None:
        super().__init__()
        self.sites = host.sites
        self.inputs = nn.Embedding(tokens, host.width)
        self.first_layer = nn.Linear(host.width, middle)
        self.last_layer = nn.Linear(middle, width(host.sites))
        self.register_buffer("first", torch.zeros(0, width(host.sites)) if sink is None else sink[:1].clone())

    first: Tensor

    def _written(self) -> Tensor:
        return self.last_layer(torch.tanh(self.first_layer(self.inputs.weight)))

    def forward(self, task: int = 0) -> Prefix:
        return _prefix(torch.cat([self.first, self._written()[len(self.first) :]]), self.sites)

    def after_step(self) -> None:
        pass

    def groups(self) -> dict[str, list[nn.Parameter]]:
        mlp = [*self.first_layer.parameters(), *self.last_layer.parameters()]
        return {"inputs": list(self.inputs.parameters()), "mlp": mlp}

    def zero(self) -> None:
        for parameter in self.last_layer.parameters():
            nn.init.zeros_(parameter)

    @torch.enable_grad()
    def fit(self, start: Tensor) -> None:
        """Make the MLP write `start`, as nearly as it can."""
        optimizer = torch.optim.Adam(self.parameters(), lr=_FIT_RATE)
        for _ in range(_FIT_STEPS):
            optimizer.zero_grad()
            nn.functional.mse_loss(self._written(), start).backward()
            optimizer.step()
        optimizer.zero_grad()
