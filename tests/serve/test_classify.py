from __future__ import annotations

import pytest

import reference
from servers import Running, prompts
from softprompt.answer.engine import Engine
from toys import ROWS

TEXTS = [row["text"] for row in ROWS]


def ask(served: Running, **asked) -> list[dict]:
    with served.http() as http:
        found = http.post("/v1/classify", json=asked)
        assert found.status_code == 200, found.text
        return found.json()["data"]


@pytest.fixture(scope="module")
def alone() -> Engine:
    engine = Engine(reference.backbone("llama"))
    for name, saved in prompts().items():
        engine.add(name, saved)
    return engine


def test_several_prompts_about_several_texts(served: Running, alone: Engine):
    names = ["topics", "tones", "voting", "multi-label", "sequence-classification"]
    found = ask(served, model=names, input=TEXTS)
    assert [(d["index"], d["model"]) for d in found] == [(i, name) for i in range(len(TEXTS)) for name in names]
    for datum in found:
        (wanted,) = alone.classify([(datum["model"], {"text": TEXTS[datum["index"]]})])
        assert datum["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
        if datum["model"] == "multi-label":
            assert datum["labels"] == list(wanted.labels)
        else:
            assert datum["label"] == wanted.label


def test_words_and_answers_in_a_text(served: Running, alone: Engine):
    (tags,) = ask(served, model="token-classification", input=TEXTS[0])
    (wanted,) = alone.tag([("token-classification", {"text": TEXTS[0]})])
    assert tags["labels"] == list(wanted.labels)
    assert tags["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
    (span,) = ask(served, model="question-answering", input={"text": TEXTS[0]})
    (found,) = alone.extract([("question-answering", {"text": TEXTS[0]})])
    assert span["span"]["text"] == found.text == TEXTS[0][span["span"]["start"] : span["span"]["end"]]


def test_how_an_ensemble_chooses(served: Running, alone: Engine):
    for by in ("vote", "mean"):
        wanted = alone.classify([("voting", {"text": text}) for text in TEXTS], by=by)
        assert [d["label"] for d in ask(served, model="voting", input=TEXTS, by=by)] == [a.label for a in wanted]


def test_one_text_is_read_once_for_all_prompts(serve):
    made = serve()
    site = reference.first_site(made.desk.service.backbone)
    ask(made, model=["tones"], input="x")
    with reference.inputs_of(site) as seen:
        ask(made, model=["tones"], input=TEXTS[5])
    once = sum(x.shape[0] * x.shape[1] for x in seen)
    for number in range(3):
        made.desk.service.add(f"other-{number}", prompts()["tones"])
    with reference.inputs_of(site) as seen:
        ask(made, model=["tones", "other-0", "other-1", "other-2"], input=TEXTS[5])
    several = sum(x.shape[0] * x.shape[1] for x in seen)
    text = len(reference.backbone("llama").tokenizer(TEXTS[5])["input_ids"])
    assert several <= once + 3 * (once - text + 2)


def test_a_text_that_was_cut_says_so(served: Running):
    short, long = ask(served, model="topics", input=["x", "the team won " * 100])
    assert short["cut"] == 0
    assert long["cut"] > 100
