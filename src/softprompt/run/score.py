"""How likely each label is: the answer of a classification by verbalizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.run.forward import Filling, Forward
from softprompt.run.loss import answer_log_probabilities
from softprompt.text.examples import Example
from softprompt.text.verbalizer import Verbalizer

# Rows scored in one pass, or as many as were asked about if these are more: labels that share a first token make many
# rows of one.
_PORTION = 16


@torch.inference_mode()
def label_log_probabilities(
    forward: Forward,
    examples: Sequence[Example],
    verbalizers: Sequence[Verbalizer],
    fillings: Sequence[Filling],
    which: Sequence[int] | None = None,
) -> list[Tensor]:
    """Log-probability of each label among its row's labels, one `[C]` float32 per row.

    Args:
        examples: B rows, of any mixture of tasks; their own targets are not looked at.
        verbalizers: for each row the labels it chooses from.
        fillings: K prompts.
        which: for each row its prompt's index; None where there is one.
    """
    which = which if which is not None else [0] * len(examples)
    # Each row stands once for every distinct continuation that has to be scored: once in all where first tokens differ.
    candidates = [(v.words[0][:1],) if v.by_first_token else v.words for v in verbalizers]
    asked = [replace(e, target=word) for e, words in zip(examples, candidates, strict=True) for word in words]
    prompts = [k for k, words in zip(which, candidates, strict=True) for _ in words]
    owners = [v for v, words in zip(verbalizers, candidates, strict=True) for _ in words]
    size = max(len(examples), _PORTION)
    found: list[Tensor] = []
    for start in range(0, len(asked), size):
        part = slice(start, start + size)
        found += _scores(*forward(asked[part], fillings, prompts[part]), owners[part])
    rows = iter(found)
    return [torch.cat([next(rows) for _ in words]).log_softmax(dim=-1) for words in candidates]


def _scores(logits: Tensor, targets: Tensor, verbalizers: Sequence[Verbalizer]) -> Iterator[Tensor]:
    """For each row the first tokens of all its labels, `[C]`, or the whole of the one it was asked about, `[1]`."""
    whole = [i for i, v in enumerate(verbalizers) if not v.by_first_token]
    wholes = iter(answer_log_probabilities(logits[whole], targets[whole]).split(1))
    for row, verbalizer in zip(logits, verbalizers, strict=True):
        if verbalizer.by_first_token:
            yield row[-1, [word[0] for word in verbalizer.words]].float()
        else:
            yield next(wholes)
