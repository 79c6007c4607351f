from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from functools import cache

import pytest

import reference
from softprompt.answer.engine import Engine
from softprompt.answer.plain import Plain
from softprompt.answer.sampling import Sampling
from softprompt.answer.service import Service
from softprompt.errors import BusyError, LengthError, QueueError, RequestError, SettingsError, UnknownPromptError
from softprompt.prompts import HardPrompt
from softprompt.saved import SavedPrompt
from softprompt.text.task import Task
from toys import BEHIND, ROWS, TONES, TOPICS, WRITING, prompt

WRITERS = {
    "front": WRITING,
    "behind": Task(BEHIND),
    "long": Task("{soft:2}Is {text}{soft:9} right? {label}"),
    "hard": Task("Article: {text}\nTopic: {label}"),
}
CHOOSERS = {"topics": TOPICS, "tones": TONES}
TEXTS = [row["text"] for row in ROWS]
NEW = 6


@cache
def prompts(family: str) -> dict[str, SavedPrompt]:
    backbone = reference.backbone(family)
    return {
        name: prompt(backbone, task, seed=len(name), method=HardPrompt() if name == "hard" else None)
        for name, task in (WRITERS | CHOOSERS).items()
    }


@cache
def engine(family: str) -> Engine:
    made = Engine(reference.backbone(family))
    for name, saved in prompts(family).items():
        made.add(name, saved)
    return made


def serving(family: str = "llama", **options) -> Service:
    made = Service(reference.backbone(family), **options)
    for name, saved in prompts(family).items():
        made.add(name, saved)
    return made


@pytest.fixture
def service() -> Iterator[Service]:
    made = serving()
    yield made
    made.close()


def only(future: Future) -> str:
    ((written,),) = future.result(60)
    return written.text


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bloom"])
def test_many_callers_are_answered_as_each_alone(family: str):
    wanted = {
        (name, text): engine(family).generate([(name, {"text": text})], max_new_tokens=NEW)[0].text
        for name in WRITERS
        for text in TEXTS
    }
    chosen = {(name, text): engine(family).classify([(name, {"text": text})])[0] for name in CHOOSERS for text in TEXTS}
    made, found = serving(family, rows=5), {}

    def call(name: str, text: str) -> None:
        request = (name, {"text": text})
        if name in WRITERS:
            found[name, text] = only(made.write(request, Sampling(max_new_tokens=NEW)))
        else:
            (found[name, text],) = made.answer([request]).result(60)

    callers = [threading.Thread(target=call, args=pair) for pair in (*wanted, *chosen)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert made.close()
    assert {pair: found[pair] for pair in wanted} == wanted
    assert len(set(wanted.values())) > 6
    for pair, answer in chosen.items():
        assert found[pair].label == answer.label
        assert found[pair].probabilities == pytest.approx(answer.probabilities, abs=1e-5)


class Held:
    """Holds up the thread that writes, from the first token on, until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, *_: object) -> None:
        self.begun.set()
        assert self.go.wait(30)


def held(made: Service, tokens: int = 100) -> tuple[Held, Future]:
    """An answer that is being written, and what holds it up."""
    hold = Held()
    future = made.write(("front", {"text": "x"}), Sampling(max_new_tokens=tokens), hold)
    assert hold.begun.wait(30)
    return hold, future


def test_rows_are_run_together():
    class Seen:
        def __init__(self) -> None:
            self.passes: list[tuple[str, int]] = []

        def passed(self, kind: str, rows: int, seconds: float) -> None:
            assert seconds > 0
            self.passes.append((kind, rows))

    seen = Seen()
    made = serving(observer=seen, rows=8)
    hold, _ = held(made, tokens=4)
    for name in WRITERS:
        made.write((name, {"text": "the match"}), Sampling(max_new_tokens=2))
    made.answer([(name, {"text": "x"}) for name in CHOOSERS])
    hold.go.set()
    assert made.close(30)
    # The first is at its second token when the others come.
    assert seen.passes == [("begin", 1), ("step", 1), ("answer", 2), ("begin", 4), ("step", 5), ("step", 1)]


def test_text_is_told_while_it_is_written(service: Service):
    told: list[tuple[int, str, object]] = []
    future = service.write(
        ("front", {"text": "the team won"}),
        Sampling(max_new_tokens=NEW, n=2, temperature=1.0, seed=3),
        lambda number, text, written: told.append((number, text, written.finish)),
    )
    (answers,) = future.result(60)
    for number, answer in enumerate(answers):
        assert "".join(text for n, text, _ in told if n == number) == answer.text
        assert [finish for n, _, finish in told if n == number][-1] == answer.finish == "length"
    assert answers[0].text != answers[1].text


def test_a_seed_gives_the_same_whatever_is_asked_beside_it(service: Service):
    sampling = Sampling(max_new_tokens=NEW, temperature=1.0, seed=5)
    request = ("long", {"text": "the market fell"})
    alone = only(service.write(request, sampling))
    beside = [service.write((name, {"text": "x"}), Sampling(max_new_tokens=9)) for name in WRITERS]
    assert only(service.write(request, sampling)) == alone
    assert all(only(future) for future in beside)


def test_who_cancels_frees_the_place():
    made = serving(rows=1)
    hold, long = held(made)
    short = made.write(("front", {"text": "the team won"}), Sampling(max_new_tokens=1))
    waiting = made.answer([("topics", {"text": "x"})])
    assert (made.writing, made.waiting) == (1, 2)
    long.cancel()
    waiting.cancel()
    hold.go.set()
    assert only(short) is not None
    for future in (long, waiting):
        with pytest.raises(CancelledError):
            future.result()
    assert made.close(30)


def test_too_many_are_turned_away():
    made = serving(rows=1, queue=2)
    hold, long = held(made)
    waiting = [made.write(("front", {"text": "x"}), Sampling(max_new_tokens=1)) for _ in range(2)]
    with pytest.raises(QueueError, match="2 rows are waiting"):
        made.write(("front", {"text": "x"}), Sampling(max_new_tokens=1))
    long.cancel()
    hold.go.set()
    assert [only(future) is not None for future in waiting] == [True, True]
    made.close()


def test_closing_finishes_what_was_asked_and_takes_nothing_more():
    made = serving(rows=2)
    asked = [made.write(("front", {"text": text}), Sampling(max_new_tokens=NEW)) for text in TEXTS]
    assert made.close(60)
    assert [only(future) for future in asked] == [
        g.text for g in engine("llama").generate([("front", {"text": t}) for t in TEXTS], max_new_tokens=NEW)
    ]
    with pytest.raises(BusyError):
        made.answer([("topics", {"text": "x"})])


def test_what_cannot_be_finished_in_time_is_told():
    made = serving(rows=1)
    asked = [
        made.write(("front", {"text": "x"}), Sampling(max_new_tokens=100), lambda *_: time.sleep(0.05))
        for _ in range(2)
    ]
    assert not made.close(0.2)
    for future in asked:
        with pytest.raises(BusyError, match="closed"):
            future.result(1)


def test_prompts_come_and_go_while_others_are_asked(service: Service):
    other = prompts("llama")["behind"]
    stop, failed = threading.Event(), []
    wanted = engine("llama").generate([("front", {"text": "x"})], max_new_tokens=NEW)[0].text

    def ask() -> None:
        while not stop.is_set():
            found = only(service.write(("front", {"text": "x"}), Sampling(max_new_tokens=NEW)))
            if found != wanted:
                failed.append(found)

    callers = [threading.Thread(target=ask) for _ in range(3)]
    for caller in callers:
        caller.start()
    for _ in range(20):
        service.add("other", other)
        asked = service.write(("other", {"text": "x"}), Sampling(max_new_tokens=2))
        service.remove("other")
        assert only(asked) is not None
        with pytest.raises(UnknownPromptError):
            service.write(("other", {"text": "x"}), Sampling())
    stop.set()
    for caller in callers:
        caller.join()
    assert not failed


def test_one_that_fails_costs_no_other_its_answer(service: Service, monkeypatch: pytest.MonkeyPatch):
    answer = service._answering.answer

    def failing(asked, *args):
        if any(a.row["text"] == "bad" for members in asked for a in members):
            raise ZeroDivisionError("never mind")
        return answer(asked, *args)

    monkeypatch.setattr(service._answering, "answer", failing)
    futures = (
        service.answer([("topics", {"text": t}) for t in ("x", "the match")]),
        service.answer([("topics", {"text": "bad"})]),
    )
    assert len(futures[0].result(60)) == 2
    with pytest.raises(Exception, match="ZeroDivisionError: never mind"):
        futures[1].result(60)


def test_what_cannot_be_asked_is_refused_at_once(service: Service):
    for refused, ask in (
        (UnknownPromptError, lambda: service.answer([("nobody", {"text": "x"})])),
        (RequestError, lambda: service.answer([("front", {"text": "x"})])),
        (RequestError, lambda: service.answer([("topics", {"txt": "x"})])),
        (SettingsError, lambda: service.write(("front", {"text": "x"}), Sampling(n=100))),
    ):
        with pytest.raises(refused):
            ask()
    assert service.waiting == 0


def test_the_model_itself_goes_on_with_text(service: Service):
    backbone = service.backbone
    plain = Plain(backbone)
    found = only(service.write_row(plain.text("the team won", NEW, "prompt"), Sampling(max_new_tokens=NEW)))
    ids = backbone.tokenizer("the team won", return_tensors="pt")["input_ids"]
    model = reference.plain("llama")
    wanted = model.generate(ids, max_new_tokens=NEW, do_sample=False)[0, ids.shape[1] :]
    assert found == backbone.tokenizer.decode(wanted, skip_special_tokens=True)
    with pytest.raises(LengthError):
        plain.text("the team won " * 100, NEW, "prompt")
    with pytest.raises(RequestError, match="chat template"):
        plain.conversation([{"role": "user", "content": "x"}], NEW, "messages")
