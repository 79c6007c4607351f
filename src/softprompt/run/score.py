"""How likely each label is: the answer of a classification by verbalizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.run.forward import Filling, Forward
from softprompt.run.loss import answer_log_probabilities
from softprompt.text.examples import Example
from softprompt.text.verbalizer import Verbalizer


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
    logits, targets = forward(asked, fillings, prompts)
    scores = []
    at = 0
    for verbalizer, words in zip(verbalizers, candidates, strict=True):
        mine = slice(at, at + len(words))
        if verbalizer.by_first_token:
            first = torch.tensor([word[0] for word in verbalizer.words], device=logits.device)
            raw = logits[at, -1].float()[first]
        else:
            raw = answer_log_probabilities(logits[mine], targets[mine])
        scores.append(raw.log_softmax(dim=-1))
        at += len(words)
    return scores
