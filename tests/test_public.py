"""The names that other people's scripts rely on, used as the architecture page writes them."""

from __future__ import annotations

import inspect

import pytest

import softprompt
import tiny


def test_every_public_name_is_there_and_says_what_it_is():
    assert set(softprompt.__all__) <= set(dir(softprompt))
    for name in softprompt.__all__:
        value = getattr(softprompt, name)
        assert value is not None
        if name != "__version__":
            assert value.__module__.startswith("softprompt.")
            assert inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Pormpt'"):
        _ = softprompt.Pormpt


def test_public_callables_document_their_arguments():
    for name in ("train", "evaluate", "load", "save"):
        assert inspect.signature(getattr(softprompt, name)).return_annotation is not inspect.Signature.empty
    assert "Args:" in inspect.getdoc(softprompt.train)


def test_the_whole_way_as_it_is_documented(tmp_path, monkeypatch):
    from softprompt import Backbone, Engine, PromptTuning, Task, load, train

    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    labels = ["business", "sports", "tech"]
    train_rows = eval_rows = [{"text": f"the {label} match", "label": label} for label in labels]

    backbone = Backbone.load("model")
    task = Task(template="{soft}Article: {text}\nTopic: {label}", labels=labels)
    tuning = PromptTuning(tokens=20, init="text", text="Which topic is this?")
    result = train(backbone, task, tuning, train_rows, eval_rows, steps=3, output="prompts/topic", progress=False)
    assert 0 <= result.metrics["accuracy"] <= 1
    assert str(result.path) == "prompts/topic"
    titles = Task(template="{soft:3}{text}\nTitle: {label}")
    train(backbone, titles, PromptTuning(), train_rows, steps=1, output="prompts/titles", progress=False)

    engine = Engine(backbone)
    engine.add("topic", "prompts/topic")
    engine.add("tone", load("prompts/topic"))
    answers = engine.classify([("topic", {"text": "..."}), ("tone", {"text": "..."})])
    assert answers[0] == answers[1]
    assert answers[0].label in labels
    assert sum(answers[0].probabilities.values()) == pytest.approx(1, abs=1e-5)
    engine.add("titles", "prompts/titles")
    assert isinstance(engine.generate([("titles", {"text": "..."})], max_new_tokens=4)[0].text, str)
    engine.remove("topic")
    assert set(engine.prompts) == {"tone", "titles"}
    assert load("prompts/topic").values.embeddings.shape == (20, 32)
