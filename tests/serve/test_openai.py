"""The official client, as it is."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import openai
import pytest

import reference
from servers import WRITERS, Running, prompts
from softprompt.answer.engine import Engine
from toys import ROWS

TEXTS = [row["text"] for row in ROWS]
NEW = 6


@pytest.fixture(scope="module")
def alone() -> Engine:
    """What each request is answered by itself."""
    engine = Engine(reference.backbone("llama"))
    for name, saved in prompts().items():
        engine.add(name, saved)
    return engine


def test_models_are_listed(served: Running):
    client = served.openai()
    cards = {card.id: card for card in client.models.list()}
    assert set(cards) == {"tiny-llama", *prompts()}
    assert cards["topics"].parent == "tiny-llama"
    assert cards["topics"].labels == ["sports", "business"]
    assert client.models.retrieve("topics") == cards["topics"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("name", WRITERS)
def test_a_completion_is_what_the_prompt_writes(served: Running, alone: Engine, name: str):
    found = served.openai().completions.create(model=name, prompt=TEXTS, max_tokens=NEW, temperature=0)
    wanted = alone.generate([(name, {"text": text}) for text in TEXTS], max_new_tokens=NEW)
    assert [choice.text for choice in found.choices] == [answer.text for answer in wanted]
    assert [choice.index for choice in found.choices] == list(range(len(TEXTS)))
    assert [choice.finish_reason == "stop" for choice in found.choices] == [answer.finished for answer in wanted]
    assert found.usage.completion_tokens == sum(answer.tokens for answer in wanted)
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_streamed_answer_is_the_whole_one(served: Running):
    client, asked = served.openai(), {"model": "long", "max_tokens": NEW, "temperature": 1.0, "seed": 7, "n": 3}
    whole = client.completions.create(prompt=TEXTS[0], **asked, logprobs=2)
    chunks = list(
        client.completions.create(
            prompt=TEXTS[0], **asked, logprobs=2, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        own = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.text for c in own) == choice.text
        assert own[-1].finish_reason == choice.finish_reason
        for what in ("tokens", "token_logprobs", "text_offset"):
            told = [x for c in own for x in getattr(c.logprobs, what)]
            assert (
                told == pytest.approx(getattr(choice.logprobs, what), abs=1e-4)
                if what == "token_logprobs"
                else (told == getattr(choice.logprobs, what))
            )
    assert len({choice.text for choice in whole.choices}) == 3


def test_a_chat_with_a_prompt_fills_its_field(served: Running, alone: Engine):
    client = served.openai()
    (wanted,) = alone.generate([("writing", {"text": TEXTS[1]})], max_new_tokens=NEW)
    asked = {"model": "writing", "messages": [{"role": "user", "content": TEXTS[1]}], "temperature": 0}
    found = client.chat.completions.create(**asked, max_completion_tokens=NEW, logprobs=True, top_logprobs=2)
    assert found.choices[0].message.content == wanted.text
    assert len(found.choices[0].logprobs.content) == wanted.tokens
    assert all(t.logprob == pytest.approx(t.top_logprobs[0].logprob) for t in found.choices[0].logprobs.content)
    parts = [{"role": "user", "content": [{"type": "text", "text": TEXTS[1]}]}]
    chunks = client.chat.completions.create(model="writing", messages=parts, temperature=0, max_tokens=NEW, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == wanted.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_with_labels_answers_with_its_label(served: Running, alone: Engine, stream: bool):
    client = served.openai()
    for text in TEXTS:
        (wanted,) = alone.classify([("topics", {"text": text})])
        chat = client.chat.completions.create(
            model="topics", messages=[{"role": "user", "content": text}], stream=stream
        )
        done = client.completions.create(model="topics", prompt=text, stream=stream)
        if stream:
            assert "".join(c.choices[0].delta.content or "" for c in chat) == wanted.label
            assert "".join(c.choices[0].text for c in done) == wanted.label
        else:
            assert chat.choices[0].message.content == done.choices[0].text == wanted.label
            assert chat.usage.prompt_tokens > 4


def test_the_model_itself_goes_on_with_text(served: Running):
    model, tokenizer = reference.plain("llama"), reference.backbone("llama").tokenizer
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    wanted = model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :]
    found = served.openai().completions.create(model="tiny-llama", prompt=TEXTS[0], max_tokens=NEW, temperature=0)
    assert found.choices[0].text == tokenizer.decode(wanted, skip_special_tokens=True)


def test_stop_strings_end_an_answer(served: Running):
    client = served.openai()
    asked = {"model": "writing", "prompt": TEXTS[0], "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[2:4]
    found = client.completions.create(**asked, stop=[stop, "never"]).choices[0]
    assert (found.text, found.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_template_with_several_fields_takes_them_by_name(served: Running, alone: Engine):
    row = {"question": "the team?", "text": "won"}
    (wanted,) = alone.generate([("pair", row)], max_new_tokens=NEW)
    asked = {"model": "pair", "max_tokens": NEW, "temperature": 0}
    with served.http() as http:
        found = http.post("/v1/completions", json={**asked, "fields": row})
        assert found.json()["choices"][0]["text"] == wanted.text
        refused = http.post("/v1/completions", json={**asked, "prompt": "won"})
    assert refused.status_code == 400
    assert "question, text" in refused.json()["error"]["message"]


@pytest.mark.parametrize("packed", ["float", "base64"])
def test_embeddings(served: Running, alone: Engine, packed: str):
    found = served.openai().embeddings.create(model="feature-extraction", input=TEXTS, encoding_format=packed)
    for datum, wanted in zip(
        found.data, alone.embed([("feature-extraction", {"text": t}) for t in TEXTS]), strict=True
    ):
        vector = datum.embedding
        if packed == "base64":
            import base64

            vector = np.frombuffer(base64.b64decode(vector), dtype="<f4").tolist()
        assert vector == pytest.approx(wanted.vector, abs=1e-5)


def test_sixty_four_clients_over_all_prompts_get_what_each_gets_alone(served: Running, alone: Engine):
    writers = [(name, text) for name, text in itertools.product(WRITERS, TEXTS)]
    choosers = [(name, text) for name, text in itertools.product(("topics", "tones", "voting"), TEXTS)]
    asked = list(itertools.islice(itertools.cycle(writers + choosers), 64))
    wanted = {
        (name, text): alone.generate([(name, {"text": text})], max_new_tokens=NEW)[0].text for name, text in writers
    } | {(name, text): alone.classify([(name, {"text": text})])[0].label for name, text in choosers}
    found: list[tuple[tuple[str, str], str]] = []

    def call(name: str, text: str) -> None:
        answer = served.openai().completions.create(model=name, prompt=text, max_tokens=NEW, temperature=0)
        found.append(((name, text), answer.choices[0].text))

    clients = [threading.Thread(target=call, args=pair) for pair in asked]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(found) == 64
    for pair, text in found:
        assert text == wanted[pair]
    assert len(set(wanted.values())) > 12
