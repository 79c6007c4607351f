from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import reference
import tiny
from reference import ROWS, TEMPLATES, assert_close, case
from softprompt.backbone.backbone import Backbone
from softprompt.run.forward import Forward
from softprompt.run.loss import answer_loss
from softprompt.run.reader import CHUNK, Reader, chunks

BEHIND = ["behind", "middle", "two", "no-slot", "text-alone"]


def plans_of(given, backbone):
    return [Forward(backbone).plan(e) for e in given.examples]


@pytest.fixture(scope="module")
def backbone():
    return reference.backbone("llama")


@pytest.fixture(scope="module")
def given(backbone):
    return case(BEHIND, backbone)


@pytest.fixture(scope="module")
def plans(given, backbone):
    return plans_of(given, backbone)


def size_of_all(backbone, plans) -> int:
    reader = Reader(backbone, 2**40)
    assert reader.read_ahead(plans) == 0
    return reader.kept


def stored(stretch) -> int:
    return sum(t.untyped_storage().nbytes() for t in (*stretch.keys, *stretch.values))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_texts_read_ahead_serve_every_step(family):
    backbone = reference.backbone(family)
    given = case(list(TEMPLATES), backbone)
    forward = Forward(backbone)
    assert forward.reader.read_ahead(plans_of(given, backbone)) == 0
    for _ in range(2):
        logits, targets = forward(given.examples, given.fillings, given.which)
        assert_close(answer_loss(logits, targets), reference.loss(reference.plain(family), given))


@pytest.mark.parametrize("share_of_all", [0.0, 0.5, 0.999, 1.0])
def test_a_budget_changes_no_result_and_is_kept(backbone, given, plans, share_of_all):
    whole = size_of_all(backbone, plans)
    forward = Forward(backbone, budget=int(share_of_all * whole))
    left = forward.reader.read_ahead(plans)
    # Hard text is kept whatever the budget.
    heads = sum(forward.reader.head(h).nbytes for h in {p.head for p in plans if p.head})
    kept = forward.reader.kept
    assert kept <= forward.reader.budget + heads
    assert (left == 0) == (share_of_all == 1.0)
    logits, targets = forward(given.examples, given.fillings, given.which)
    assert_close(answer_loss(logits, targets), reference.loss(reference.plain("llama"), given))
    assert forward.reader.kept == kept, "a text was kept that was not read ahead"


def test_what_is_left_is_counted(backbone, plans):
    reader = Reader(backbone, size_of_all(backbone, plans) // 2)
    left = reader.read_ahead(plans)
    texts = {(p.head, p.text): p for p in plans if p.text}
    assert left == sum(p not in reader for p in texts.values()) > 0
    assert left < len(texts)


def test_reading_ahead_twice_reads_nothing(backbone, plans):
    reader = Reader(backbone, 2**40)
    reader.read_ahead(plans)
    kept = reader.kept
    with reference.inputs_of(reference.first_site(backbone)) as seen:
        assert reader.read_ahead(plans) == 0
        reader.texts([p for p in plans if p.text])
    assert seen == []
    assert reader.kept == kept


def test_progress_counts_each_text_once(backbone, plans):
    told = []
    Reader(backbone, 2**40).read_ahead(plans, told.append)
    assert sum(told) == len({(p.head, p.text) for p in plans if p.text})


def test_what_is_kept_holds_on_to_no_more_than_itself(backbone, plans):
    reader = Reader(backbone, 2**40)
    reader.read_ahead(plans)
    texts = {(p.head, p.text): p for p in plans if p.text}
    stretches = [*reader.texts(list(texts.values())), *(reader.head(h) for h in {p.head for p in plans if p.head})]
    assert [stored(s) for s in stretches] == [s.nbytes for s in stretches]
    assert reader.kept == sum(map(stored, stretches))


def test_one_head_of_a_single_width_is_copied_too():
    # With one key head a row of a pass is contiguous as it is, and would keep the whole pass.
    model = tiny.model("llama")
    model.config.num_key_value_heads = 1
    backbone = Backbone(type(model)(model.config), tiny.tokenizer())
    reader = Reader(backbone, 2**40)
    plans = [p for p in plans_of(case(["text-alone"], backbone), backbone) if p.text]
    reader.read_ahead(plans)
    assert [stored(s) for s in reader.texts(plans)] == [s.nbytes for s in reader.texts(plans)]


def test_forgetting_frees_everything_and_changes_no_result(backbone, given, plans):
    forward = Forward(backbone)
    forward.reader.read_ahead(plans)
    first, _ = forward(given.examples, given.fillings, given.which)
    forward.reader.forget()
    assert forward.reader.kept == 0
    assert not any(p in forward.reader for p in plans)
    forward.reader.read_ahead(plans)
    second, _ = forward(given.examples, given.fillings, given.which)
    assert torch.equal(first, second)


def test_a_server_that_forgets_does_not_grow(backbone):
    forward = Forward(backbone)
    sizes = []
    for number in range(3):
        maker = reference.ExampleMaker(
            reference.Task(f"Topic {number}: {{text}}{{soft:1}}{{label}}"), backbone.tokenizer
        )
        example = maker(ROWS[0])
        prompt = reference.Filling(reference.VirtualTokens(torch.zeros(1, backbone.hidden_size)), {})
        forward([example], [prompt])
        sizes.append(forward.reader.kept)
        forward.reader.forget()
    assert len(set(sizes)) == 1
    assert sizes[0] > 0


def test_the_order_of_batches_changes_no_bit(backbone, given, plans):
    def run(order, ahead):
        forward = Forward(backbone)
        if ahead:
            forward.reader.read_ahead(plans)
        found = {}
        for i in order:
            found[i] = forward([given.examples[i]], given.fillings, [given.which[i]])[0]
        return [found[i] for i in sorted(found)]

    order = range(len(given.examples))
    for ahead in (False, True):
        pairs = zip(run(order, ahead), run(reversed(order), ahead), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_texts_come_in_the_order_they_were_asked_for(backbone, plans):
    asked = [p for p in plans if p.text]
    found = Reader(backbone, 0).texts(asked)
    assert [s.length for s in found] == [len(p.text) for p in asked]
    for plan, stretch in zip(asked, found, strict=True):
        (alone,) = Reader(backbone, 0).texts([plan])
        for got, wanted in zip((*stretch.keys, *stretch.values), (*alone.keys, *alone.values), strict=True):
            assert_close(got, wanted)


def test_a_text_behind_another_head_is_another_text(backbone):
    given = case(["behind", "text-alone"], backbone, rows=ROWS[:1])
    behind, alone = plans_of(given, backbone)
    assert behind.head != alone.head
    reader = Reader(backbone, 2**40)
    reader.read_ahead([behind])
    assert behind in reader
    assert alone not in reader


def test_chunks_are_of_one_head_and_bounded(plans):
    many = [replace(p, text=(*p.text, i)) for i in range(400) for p in plans]
    cut = list(chunks(many))
    assert sorted((p.head, p.text) for c in cut for p in c) == sorted({(p.head, p.text) for p in many})
    assert len(cut) > 2
    for chunk in cut:
        assert len({p.head for p in chunk}) == 1
        assert len(chunk) * max(len(p.text) for p in chunk) <= CHUNK
    assert list(chunks([])) == []


def test_a_text_longer_than_a_chunk_is_read_alone(plans):
    long = replace(plans[0], text=(5,) * (CHUNK + 1))
    assert [len(c) for c in chunks([long, replace(long, text=(6,) * (CHUNK + 2))])] == [1, 1]
