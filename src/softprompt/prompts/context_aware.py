"""Context-aware prompt tuning: worked examples in front, changed a little (Blau et al. 2024, arXiv 2410.17222)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from softprompt.checks import check_whole
from softprompt.errors import SettingsError
from softprompt.prompts.method import Asked, Host, Method, Parametrization
from softprompt.prompts.prompt import VirtualTokens
from softprompt.text.worked import KINDS, ORDERS, Order, Recipe, WorkedExamples

# The width at which the paper's bounds are what they say.
_WIDTH = 2048

# A vector that is scaled to its bound may land a rounding above it: it is scaled to just below.
_BELOW = 1 - 1e-6


@dataclass(frozen=True)
class ContextAwarePromptTuning(Method):
    """The embeddings of k worked examples `[P, D]`, each a little changed (section "Our Method" of the paper).

    The worked examples are training rows, balanced over the labels, each written as the template writes a row, with its
    answer and a separator behind it. What is learned is a change `[D]`, zero at first, of every token of their fields
    and of the template's hard text. Answers, separators and end-of-text tokens stay the model's own embeddings to the
    last bit. After each update every change is projected: its L2 norm is at most epsilon * sqrt(D / 2048). The model is
    asked for the answers of all worked examples as well as for the row's: the loss is the mean of these
    cross-entropies, weighted by gamma^j, j = 0 for the row, 1 for the last worked example, 2 for the one before. What
    is kept are the changed embeddings, virtual tokens like any others: `{soft:P}` in front of the template.

    Defaults are those of the paper's notebooks (4 worked examples, gamma 0.95, bounds 0.2 and 0.1), but for the
    learning rate: 1e-3 instead of 1e-4, which reaches the bounds in a run of usual length. PEFT has no decay (gamma 1)
    and 0.1 for both bounds.

    Deviations: in the paper the worked examples are all of a few-shot training set; here they are drawn from the
    training rows. As there, the rows among them are trained on, too. The weighted losses are divided by the sum of
    their weights, and those of an answer of several tokens by their number. Of a label that its first token tells from
    the others that token is asked, as of a row (see `Verbalizer`). Blanks and line breaks between the fields are hard
    text here, and learned. The bounds do not know how long a model's embeddings are: where it scales them (Gemma), they
    are narrower than in the paper's models.

    A `max_length` of the task counts the worked examples, too. A training that begins from a saved prompt goes on with
    the worked examples of that, whatever rows it is given.

    Attributes:
        examples: k, how many worked examples.
        gamma: how much less each counts than the one behind it; 0 asks for the row's answer alone.
        input_epsilon: the bound for tokens of fields.
        format_epsilon: the bound for tokens of the template's hard text.
        separator: the text behind each worked example.
        order: "drawn" (as the seed draws them), "rounds" (label after label in the task's order, and again) or "rows"
            (as they stand among the training rows).
        example_length: the most tokens that the fields of one worked example may take; None for all.

    Raises:
        SettingsError: a value is out of range, or an order is unknown.
    """

    NAME: ClassVar[str] = "context-aware"
    LEARNS: ClassVar[bool] = True
    LEARNING_RATE: ClassVar[float] = 1e-3
    BACKBONES: ClassVar[tuple[str, ...]] = ("decoder",)

    examples: int = 4
    gamma: float = 0.95
    input_epsilon: float = 0.2
    format_epsilon: float = 0.1
    separator: str = "\n\n"
    order: Order = "drawn"
    example_length: int | None = None

    def __post_init__(self) -> None:
        check_whole("examples", self.examples)
        if self.example_length is not None:
            check_whole("example_length", self.example_length)
        for name in ("gamma", "input_epsilon", "format_epsilon"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise SettingsError(f"{name} is {value!r}", where=name, instead="Give a number of 0 or more.")
        if self.gamma > 1:
            raise SettingsError(f"gamma is {self.gamma}", where="gamma", instead="Give a number from 0 to 1.")
        if not self.input_epsilon and not self.format_epsilon:
            raise SettingsError(
                "input_epsilon and format_epsilon are 0, so nothing may change",
                where="input_epsilon",
                instead="Give one of them more than 0.",
            )
        if not isinstance(self.separator, str):
            raise SettingsError(f"separator is {self.separator!r}", where="separator", instead="Give a text.")
        if self.order not in ORDERS:
            raise SettingsError(
                f"order {self.order!r} is unknown", where="order", instead=f"Use one of {', '.join(ORDERS)}."
            )

    def slot_length(self) -> int:
        return 0

    def recipe(self) -> Recipe:
        return Recipe(self.examples, self.order, self.separator, self.example_length)

    def worked_in(self, parameters: Mapping[str, Tensor]) -> WorkedExamples:
        tokens, kinds, answers = (tuple(parameters[name].tolist()) for name in ("tokens", "kinds", "answers"))
        return WorkedExamples(tokens, tuple(KINDS[kind] for kind in kinds), answers, self.examples)

    def build(self, tokens: int, host: Host, generator: torch.Generator) -> Parametrization:
        assert host.worked is not None, "asked for by the recipe"
        epsilons = {"input": self.input_epsilon, "format": self.format_epsilon}
        scale = math.sqrt(host.width / _WIDTH)
        bounds = {kind: epsilon * scale for kind, epsilon in epsilons.items()}
        return _Changed(host.worked, host.embed(torch.tensor(host.worked.tokens)), bounds, self.gamma)


class _Changed(Parametrization):
    """The worked examples' embeddings `[P, D]` and a change `[N, D]` of those N that may change.

    Args:
        worked: the worked examples.
        embeddings: `[P, D]`, the model's own.
        bounds: the largest norm of a change, for each kind of token that may change.
        gamma: how much less each worked example counts than the one behind it.
    """

    def __init__(self, worked: WorkedExamples, embeddings: Tensor, bounds: Mapping[str, float], gamma: float) -> None:
        super().__init__()
        changing = [i for i, kind in enumerate(worked.kinds) if kind in bounds]
        self.delta = nn.Parameter(torch.zeros(len(changing), embeddings.shape[1]))
        # Stored, so that a training that begins here goes on with the same worked examples.
        self.register_buffer("tokens", torch.tensor(worked.tokens))
        self.register_buffer("kinds", torch.tensor([KINDS.index(kind) for kind in worked.kinds], dtype=torch.uint8))
        self.register_buffer("answers", torch.tensor(worked.answers))
        # Not stored: they follow from the model and the settings.
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.register_buffer("changing", torch.tensor(changing, dtype=torch.long), persistent=False)
        self.register_buffer(
            "bounds", torch.tensor([[bounds[worked.kinds[i]]] for i in changing]).view(-1, 1), persistent=False
        )
        self._asked = _asked(worked, gamma)

    embeddings: Tensor
    changing: Tensor
    bounds: Tensor

    def forward(self, task: int = 0) -> VirtualTokens:
        changed = self.embeddings[self.changing] + self.delta
        return VirtualTokens(self.embeddings.index_copy(0, self.changing, changed))

    def asked(self, task: int = 0) -> tuple[Asked, ...]:
        return self._asked

    @torch.no_grad()
    def after_step(self) -> None:
        # Squares of what a large learning rate makes of it would overflow.
        largest = self.delta.abs().amax(dim=1, keepdim=True).clamp_min(1)
        norms = (self.delta / largest).norm(dim=1, keepdim=True) * largest
        self.delta.mul_(torch.where(norms > self.bounds, self.bounds * _BELOW / norms, 1.0))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"delta": [self.delta]}


def _asked(worked: WorkedExamples, gamma: float) -> tuple[Asked, ...]:
    """The answers of the worked examples, each token with its share of gamma^j."""
    sizes = Counter(worked.answers)
    return tuple(
        Asked(at - 1, worked.tokens[at], gamma ** (worked.examples - example) / sizes[example])
        for at, example in enumerate(worked.answers)
        # Before the first token nothing of the prompt stands that could predict it.
        if example >= 0 and at > 0 and gamma > 0
    )
