"""The demonstration: hard prompts, then a learned one, on the same articles."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from softprompt.answer.answers import Classification
from softprompt.answer.engine import Engine
from softprompt.backbone.backbone import Backbone
from softprompt.demo.news import LABELS, Article, news
from softprompt.learn.evaluation import evaluate
from softprompt.learn.training import Result, train
from softprompt.prompts import HardPrompt, PromptTuning
from softprompt.text.task import Task

# Every row is cut to this: the headline and the first sentences.
MAX_LENGTH = 120

_CHOICES = ", ".join(LABELS[:-1]) + " or " + LABELS[-1]

# A sentence to finish, a form to fill in, and the model's own way to be asked. The first two are the best of a dozen
# wordings, the third the best of those in the chat format.
HARD_TEMPLATES: Mapping[str, str] = {
    "a sentence": "Article: {text}\nThis news article is about {label}",
    "a form": "Article: {text}\nCategory: {label}",
    "a question": (
        f"<|im_start|>user\nClassify the news article as {_CHOICES}.\nArticle: {{text}}<|im_end|>\n"
        "<|im_start|>assistant\nTopic: {label}"
    ),
}

# Evaluations cost little, the articles being kept: ten choose a better step than three.
EVALUATIONS = 10

LEARNED_TEMPLATE = "Article: {text}\n{soft:10}Topic: {label}"


@dataclass(frozen=True)
class Outcome:
    """What the demonstration shows.

    Attributes:
        articles: how many the accuracies are over; none of them was learned from or chosen by.
        hard: accuracy of each hard prompt.
        learned: accuracy of the learned prompt.
        training: the learned prompt.
        unseen: three of these articles, each with the learned prompt's answer.
    """

    articles: int
    hard: Mapping[str, float]
    learned: float
    training: Result
    unseen: Sequence[tuple[Article, Classification]]


def run(
    backbone: Backbone,
    seed: int,
    output: Path,
    *,
    overwrite: bool,
    progress: bool,
    say: Callable[[str], None],
    learn: int = 50,
    choose: int = 20,
    test: int = 50,
    steps: int = 150,
) -> Outcome:
    """Go through the whole demonstration.

    Args:
        backbone: the frozen model.
        seed: of the draw of articles and of the training.
        output: the folder for the learned prompt.
        overwrite: replace a prompt that stands there.
        progress: show progress bars.
        say: told what is going on.
        learn, choose, test: articles of each topic.
        steps: optimizer steps.
    """
    drawn = news(seed, learn=learn, choose=choose, test=test)
    rows = [article.row for article in drawn.test]
    hard = {}
    for name, template in HARD_TEMPLATES.items():
        say(f"Hard prompt, {name}: {template!r}")
        written = train(
            backbone, Task(template, LABELS, max_length=MAX_LENGTH), HardPrompt(), [rows[0]], progress=False
        )
        hard[name] = evaluate(backbone, written.prompt, rows, progress=progress)["accuracy"]
        say(f"  accuracy {hard[name]:.1%}")
    say(f"Prompt tuning: {LEARNED_TEMPLATE!r}, {learn * len(LABELS)} articles, {steps} steps")
    result = train(
        backbone,
        Task(LEARNED_TEMPLATE, LABELS, max_length=MAX_LENGTH),
        PromptTuning(),
        [article.row for article in drawn.learn],
        [article.row for article in drawn.choose],
        output=output,
        overwrite=overwrite,
        progress=progress,
        seed=seed,
        steps=steps,
        eval_every=max(1, steps // EVALUATIONS),
    )
    learned = evaluate(backbone, result.prompt, rows, progress=progress)["accuracy"]
    say(f"  accuracy {learned:.1%}")
    engine = Engine(backbone)
    engine.add("topic", output)
    unseen = drawn.test[:3]
    answers = [
        a for a in engine.classify([("topic", article.row) for article in unseen]) if isinstance(a, Classification)
    ]
    return Outcome(len(rows), hard, learned, result, list(zip(unseen, answers, strict=True)))
