"""What the model's answers say: how likely each label is, by its word or by a trained head; and vectors of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from softprompt.prompts.head import Head
from softprompt.run.forward import Answers, Filling, Forward
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
    asked = [(i, word) for i, words in enumerate(candidates) for word in words]
    # Of an encoder-decoder only the answers are run again.
    encoded = forward.encode(examples, fillings, which) if forward.backbone.kind == "encoder-decoder" else None
    size = max(len(examples), _PORTION)
    found: list[Tensor] = []
    for start in range(0, len(asked), size):
        rows, words = zip(*asked[start : start + size], strict=True)
        if encoded is not None:
            answers = forward.decode(encoded, rows, words)
        else:
            part = [replace(examples[i], target=word) for i, word in zip(rows, words, strict=True)]
            answers = forward(part, fillings, [which[i] for i in rows])
        found += _scores(*answers, [verbalizers[i] for i in rows])
    scores = iter(found)
    return [torch.cat([next(scores) for _ in words]).log_softmax(dim=-1) for words in candidates]


def _scores(logits: Tensor, targets: Tensor, verbalizers: Sequence[Verbalizer]) -> Iterator[Tensor]:
    """For each row the first tokens of all its labels, `[C]`, or the whole of the one it was asked about, `[1]`."""
    whole = [i for i, v in enumerate(verbalizers) if not v.by_first_token]
    wholes = iter(answer_log_probabilities(logits[whole], targets[whole]).split(1))
    for row, verbalizer in zip(logits, verbalizers, strict=True):
        if verbalizer.by_first_token:
            yield row[-1, [word[0] for word in verbalizer.words]].float()
        else:
            yield next(wholes)


@torch.inference_mode()
def label_odds(
    forward: Forward,
    examples: Sequence[Example],
    verbalizers: Sequence[Verbalizer],
    fillings: Sequence[Filling],
    which: Sequence[int] | None = None,
) -> list[Tensor]:
    """Log-odds of each label against the word for none, one `[C]` float32 per row; arguments as above."""
    logits, _ = forward(examples, fillings, which)
    return [odds(row[None], verbalizer)[0] for row, verbalizer in zip(logits, verbalizers, strict=True)]


def odds(logits: Tensor, verbalizer: Verbalizer) -> Tensor:
    """`[B, S, V]` -> `[B, C]` float32: how much likelier each label's word is than the word for none, as logarithm.

    So a label's threshold is learned with the prompt (adaptive thresholding, Zhou et al. 2021, arXiv 2010.11304).
    """
    last = logits[:, -1]
    words = torch.tensor([word[0] for word in verbalizer.words], device=last.device)
    return last[:, words].float() - last[:, [verbalizer.none[0]]].float()


@torch.inference_mode()
def head_outputs(
    forward: Forward,
    examples: Sequence[Example],
    heads: Sequence[Head],
    fillings: Sequence[Filling],
    which: Sequence[int] | None = None,
) -> list[Tensor]:
    """What a trained head makes of each state that is read, one `[S, C]` float32 per row.

    Args:
        examples: B rows, all read in one way: at positions of theirs, or where their answer would be written.
        heads: of each row's task.
        fillings, which: as above.
    """
    answers = forward.answers(examples, fillings, which, head=False)
    return [head(states) for head, states in zip(heads, _read(answers, examples), strict=True)]


@torch.inference_mode()
def head_log_probabilities(
    forward: Forward,
    examples: Sequence[Example],
    heads: Sequence[Head],
    fillings: Sequence[Filling],
    which: Sequence[int] | None = None,
) -> list[Tensor]:
    """Log-probability of each label at each state that is read, one `[S, C]` float32 per row; arguments as above."""
    answers = forward.answers(examples, fillings, which, head=False)
    return [head.log_probabilities(states) for head, states in zip(heads, _read(answers, examples), strict=True)]


@torch.inference_mode()
def row_vectors(
    forward: Forward, examples: Sequence[Example], fillings: Sequence[Filling], which: Sequence[int] | None = None
) -> Tensor:
    """One vector a row, `[B, D]` float32, as `means` makes it; arguments as above."""
    return means(forward.answers(examples, fillings, which, head=False), examples)


def means(answers: Answers, examples: Sequence[Example]) -> Tensor:
    """The mean of each row's states, `[B, D]` float32."""
    return torch.stack([states.float().mean(dim=0) for states in _read(answers, examples)])


def _read(answers: Answers, examples: Sequence[Example]) -> list[Tensor]:
    """The states that are read of each row, one `[S, D]` per row; the batch is padded in front."""
    sizes = [1 if e.reads is None else len(e.reads) for e in examples]
    return [states[len(states) - size :] for states, size in zip(answers.states, sizes, strict=True)]


def best_span(outputs: Tensor) -> tuple[int, int, float]:
    """The likeliest span: its first and last token, and how likely it is among all that end where they begin or later.

    Args:
        outputs: `[S, 2]` of a head: how much a token looks like a beginning, and like an end.
    """
    begins, ends = outputs.float().log_softmax(dim=0).unbind(dim=1)
    backwards = torch.ones(len(outputs), len(outputs), dtype=torch.bool, device=outputs.device).tril(-1)
    table = (begins[:, None] + ends[None, :]).masked_fill(backwards, float("-inf"))
    likely = table.flatten().softmax(dim=0)
    best = int(likely.argmax())
    return best // len(outputs), best % len(outputs), float(likely[best])
