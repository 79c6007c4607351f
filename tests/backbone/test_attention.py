from __future__ import annotations

import pytest
import torch
from torch import Tensor

import reference
import tiny
from softprompt.backbone.attention import KEYWORD, Call, Reading, Record, route
from softprompt.backbone.context import Context, Stretch
from softprompt.errors import SourceError

HEADS, WIDTH = 2, 4


def context_of(*lengths: int) -> Context:
    """Entries of these lengths at one site."""
    found = Context.of([[Stretch((torch.randn(n, HEADS, WIDTH),), (torch.randn(n, HEADS, WIDTH),))] for n in lengths])
    assert found is not None
    return found


def widened(
    context: Context,
    mask: Tensor | None,
    positions: list[list[int]],
    own: int,
    *,
    rows: list[int] | None = None,
    causal: bool = True,
    window: int | None = None,
    past: int = 0,
) -> list[list[list[bool]]] | None:
    """For each row and query whether each key of context and row is seen; one row where all agree."""
    places = torch.tensor(positions)
    reading = Reading({}, places, context, None if rows is None else torch.tensor(rows), past=past)
    query, key = torch.zeros(*places.shape, 1).unsqueeze(1), torch.zeros(len(positions), HEADS, own, WIDTH)
    found = reading.widen(Call(query, key, key, mask, causal, window, None))
    if found is None:
        return None
    seen = found if found.dtype == torch.bool else found == 0
    assert found.dtype == torch.bool or float(found[~seen].max() if (~seen).any() else -1e9) < -1e9 + 1
    return seen[:, 0].tolist()


def bits(*rows: str) -> list[list[bool]]:
    return [[c == "1" for c in row] for row in rows]


def test_causal_rows_see_the_whole_context_and_their_own_past():
    assert widened(context_of(2), None, [[2, 3, 4]] * 4, own=3) == [bits("11100", "11110", "11111")]


def test_a_single_query_needs_no_mask():
    assert widened(context_of(2), None, [[4]] * 3, own=3, past=2) is None


def test_what_a_query_sees_of_its_row_does_not_depend_on_the_positions_a_caller_gave():
    assert widened(context_of(2), None, [[7, 8, 9]], own=3) == [bits("11100", "11110", "11111")]
    assert widened(context_of(2), None, [[7, 8]], own=4, past=2) == [bits("111110", "111111")]


def test_a_query_that_attends_to_everything_needs_no_mask():
    assert widened(context_of(2), None, [[2, 3]], own=2, causal=False) is None


def test_shorter_entries_are_closed_behind():
    found = widened(context_of(1, 3), None, [[1], [3]], own=1)
    assert found == [bits("1001"), bits("1111")]


def test_each_row_reads_the_entry_it_names():
    found = widened(context_of(1, 3), None, [[3], [1], [3]], own=1, rows=[1, 0, 1])
    assert found == [bits("1111"), bits("1001"), bits("1111")]


def test_keys_of_an_empty_cache_are_not_seen():
    # The first of a static cache's four keys is the row's, the others are yet to come.
    assert widened(context_of(2), None, [[2]], own=4) == [bits("111000")]
    assert widened(context_of(2), None, [[2, 3]], own=4) == [bits("111000", "111100")]


def test_what_is_beyond_the_window_is_forgotten():
    mask = torch.ones(1, 1, 2, 2, dtype=torch.bool).tril()
    assert widened(context_of(3), mask, [[3, 4]], own=2, window=3) == [bits("01110", "00111")]


def test_windows_count_each_rows_own_positions():
    mask = torch.tensor([[[[False, True]]], [[[True, True]]]])
    found = widened(context_of(3, 1), mask, [[3], [2]], own=2, window=3)
    assert found == [bits("01101"), bits("10011")]


def test_an_additive_mask_stays_additive():
    low = torch.finfo(torch.float32).min
    mask = torch.tensor([[[[0.0, low], [0.0, 0.0]]]])
    assert widened(context_of(1, 2), mask, [[1, 2], [2, 3]], own=2) == [bits("1010", "1011"), bits("1110", "1111")]


def test_a_mask_of_every_head_is_widened_for_every_head():
    mask = torch.rand(2, HEADS, 3, 3) > 0.5
    reading = Reading({}, torch.arange(3).expand(2, 3), context_of(2))
    query = torch.zeros(2, HEADS, 3, 1)
    found = reading.widen(Call(query, query, query, mask, True, None, None))
    assert found is not None
    assert found.shape == (2, HEADS, 3, 5)
    assert torch.equal(found[..., 2:], mask)


def test_a_mask_is_widened_once_and_never_taken_for_another():
    reading = Reading({}, torch.tensor([[2]]), context_of(2))
    query, key = torch.zeros(1, HEADS, 1, 1), torch.zeros(1, HEADS, 8, WIDTH)
    # Each mask is freed before the next is made, which may then stand in the same place.
    for number in range(50):
        mask = torch.arange(8)[None, None, None] < number % 8
        call = Call(query, key, key, mask, True, None, None)
        found = reading.widen(call)
        assert found is not None
        assert torch.equal(found[..., 2:], mask)
        assert reading.widen(call) is found
        del mask, call


def test_what_all_rows_read_is_not_copied_for_each():
    context = context_of(5)
    keys, values = Reading({}, torch.zeros(7, 1), context).before(0, 7)
    assert keys.shape == values.shape == (7, HEADS, 5, WIDTH)
    assert keys.untyped_storage().data_ptr() == context.keys[0].untyped_storage().data_ptr()
    assert values.untyped_storage().nbytes() == context.values[0].untyped_storage().nbytes()


def test_a_record_leaves_out_padding_on_either_side():
    record = Record()
    keys, values = torch.randn(2, HEADS, 4, WIDTH), torch.randn(2, HEADS, 4, 3)
    record.add(0, keys, values, None)
    left, right = record.stretches(torch.tensor([[False, True, True, True], [True, True, False, False]]))
    assert (left.length, right.length) == (3, 2)
    assert torch.equal(left.keys[0], keys[0, :, 1:].transpose(0, 1))
    assert torch.equal(right.values[0], values[1, :, :2].transpose(0, 1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_without_the_keyword_a_routed_model_is_the_plain_one(family, attention):
    plain, routed = (tiny.model(family, attention=attention) for _ in range(2))
    route(routed)
    ids = torch.arange(24).view(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    for arguments in ({"attention_mask": mask}, {}):
        assert torch.equal(routed(ids, **arguments).logits, plain(ids, **arguments).logits)


def test_routing_twice_is_routing_once():
    model = tiny.model("llama")
    route(model)
    name = model.config._attn_implementation
    route(model)
    assert model.config._attn_implementation == name
    ids = torch.arange(5)[None]
    assert torch.equal(model(ids).logits, reference.plain("llama")(ids).logits)


def test_an_implementation_that_cannot_be_wrapped_is_refused():
    model = tiny.model("llama")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(SourceError, match="'flex_attention' is not supported"):
        route(model)


def test_attention_weights_cover_context_and_row():
    backbone = tiny.backbone("llama", attention="eager")
    embeds = backbone.embed(torch.arange(6)[None])
    mask = torch.ones(1, 6, dtype=torch.bool)
    (stretch,) = backbone.read(embeds[:, :4], mask[:, :4])
    reading = Reading(backbone._site_of, torch.tensor([[4, 5]]), Context.of([[stretch]]))
    weights = backbone.model(
        inputs_embeds=embeds[:, 4:],
        attention_mask=mask[:, 4:].long(),
        position_ids=reading.positions,
        output_attentions=True,
        **{KEYWORD: reading},
    ).attentions
    whole = reference.plain("llama")
    whole.set_attn_implementation("eager")
    wanted = whole(inputs_embeds=embeds, output_attentions=True).attentions
    whole.set_attn_implementation("sdpa")
    for got, full in zip(weights, wanted, strict=True):
        reference.assert_close(got, full[:, :, 4:])
