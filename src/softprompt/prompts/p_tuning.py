"""P-tuning: virtual tokens anywhere in the template, written by a small encoder (Liu et al. 2021, arXiv 2103.10385)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from softprompt.checks import check_flag, check_whole
from softprompt.errors import SettingsError
from softprompt.prompts.initialize import Init, check_init, initialize
from softprompt.prompts.method import Host, Method, Parametrization, modules_draw_from
from softprompt.prompts.prompt import VirtualTokens

Encoder = Literal["lstm", "mlp", "none"]


@dataclass(frozen=True)
class PTuning(Method):
    """P vectors `[P, D]`, the output of an encoder over P trained inputs (section 3.2 of the paper).

    The encoder runs over the virtual tokens of all slots in their order, so those of one slot know those of another. It
    is thrown away after training: what is kept is its output.

    Deviations: the backbone stays frozen (the paper's few-shot experiments train it, too). The encoder's output is
    added to the inputs it was given, so that training begins at the words of `init` and not at noise; with
    `residual=False` it is the paper's.

    Attributes:
        tokens: P of each slot whose template does not say how many.
        encoder: "lstm" (two layers, D/2 each way, then D, ReLU, D: the paper's), "mlp" (D, ReLU, D), or "none".
        residual: whether the encoder's output is added to its input. Its last layer then starts at zero.
        init: where the inputs start; see `PromptTuning`. "random" is the paper's.
        text: the words to start from, for init="text".

    Raises:
        SettingsError: no tokens, an unknown encoder or init, or a text without init="text" or the other way round.
    """

    NAME: ClassVar[str] = "p-tuning"
    LEARNS: ClassVar[bool] = True
    LEARNING_RATE: ClassVar[float] = 1e-3

    tokens: int = 20
    encoder: Encoder = "lstm"
    residual: bool = True
    init: Init = "vocabulary"
    text: str | None = None

    def __post_init__(self) -> None:
        check_whole("tokens", self.tokens)
        check_flag("residual", self.residual)
        if self.encoder not in _ENCODERS:
            raise SettingsError(
                f"encoder {self.encoder!r} is unknown", where="encoder", instead=f"Use one of {', '.join(_ENCODERS)}."
            )
        check_init(self.init, self.text)

    def slot_length(self) -> int:
        return self.tokens

    def build(self, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        start = initialize(self.init, tokens, host, generator, self.text)
        with modules_draw_from(generator):
            encoder = _ENCODERS[self.encoder](host.width)
        return _Encoded(start, encoder, residual=self.residual and self.encoder != "none")


class _Lstm(nn.Module):
    """`[P, D] -> [P, D]`: a bidirectional LSTM of two layers, then two linear ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = -(-width // 2)
        self.lstm = nn.LSTM(width, half, num_layers=2, bidirectional=True, batch_first=True)
        self.first, self.last = nn.Linear(2 * half, width), nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden, _ = self.lstm(inputs[None])
        return self.last(torch.relu(self.first(hidden[0])))


class _Mlp(nn.Module):
    """`[P, D] -> [P, D]`: two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(inputs)))


class _Direct(nn.Module):
    """`[P, D] -> [P, D]`: nothing in between."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


_ENCODERS: dict[str, type[_Lstm] | type[_Mlp] | type[_Direct]] = {"lstm": _Lstm, "mlp": _Mlp, "none": _Direct}


class _Encoded(Parametrization):
    """Inputs `[P, D]` and the encoder over them."""

    def __init__(self, start: Tensor, encoder: _Lstm | _Mlp | _Direct, *, residual: bool) -> None:
        super().__init__()
        self.inputs = nn.Parameter(start)
        self.encoder = encoder
        self.residual = residual
        if residual:
            for parameter in encoder.get_submodule("last").parameters():
                nn.init.zeros_(parameter)

    def forward(self, task: int = 0) -> VirtualTokens:
        encoded = self.encoder(self.inputs)
        return VirtualTokens(self.inputs + encoded if self.residual else encoded)

    def after_step(self) -> None:
        pass

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"inputs": [self.inputs], "encoder": list(self.encoder.parameters())}
