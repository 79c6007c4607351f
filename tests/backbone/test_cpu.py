from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.backbone import cpu

HEADS, KEY_HEADS, LENGTH, CONTEXT, WIDTH = 6, 2, 7, 9, 16
ROWS = 5


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def queries() -> tuple[Tensor, Tensor, Tensor]:
    query = random(ROWS, LENGTH, HEADS, WIDTH)
    key, value = random(ROWS, LENGTH, KEY_HEADS, WIDTH), random(ROWS, LENGTH, KEY_HEADS, WIDTH)
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with every key head repeated for its queries."""
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    scores = query @ key.transpose(-1, -2) / WIDTH**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -1e30)
    return scores.softmax(dim=-1) @ value


def agree(found: Tensor, right: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Outputs and gradients."""
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(right, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def causal(padded: dict[int, int]) -> Tensor:
    """`[B, 1, T, T]`, some rows padded in front."""
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().repeat(ROWS, 1, 1, 1)
    for row, padding in padded.items():
        mask[row, ..., :padding] = False
    return mask


@pytest.mark.parametrize(
    ("entries", "which"),
    [(1, [0] * ROWS), (ROWS, list(range(ROWS))), (3, [2, 0, 2, 1, 2]), (2, [1, 1, 0, 1, 1])],
    ids=["one context for all", "one for each row", "shared by some", "shared unevenly"],
)
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("way", ["merged", "side by side"])
def test_a_context_and_own_keys_are_attended_together(entries: int, which: list[int], additive: bool, way: str):
    query, key, value = queries()
    context_key = random(entries, KEY_HEADS, CONTEXT, WIDTH)
    context_value = random(entries, KEY_HEADS, CONTEXT, WIDTH)
    # Queries in padding see none of their own keys, one row sees nothing of its context, one the beginning.
    own, seen = causal({1: 3}), torch.ones(ROWS, 1, LENGTH, CONTEXT, dtype=torch.bool)
    seen[2, ..., 4:] = False
    seen[3] = False
    rows = torch.tensor(which)
    picked = rows if 1 < entries < ROWS else None

    def given(mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min) if additive else mask

    if way == "merged":
        groups = None if picked is None else cpu.Groups(picked, entries)
        split = cpu.Split.of(query, key, entries, groups, seen, given(own))
        found = cpu.merged_attention(query, key, value, context_key, context_value, split, None)
    else:
        bias = cpu.grouped_bias(given(torch.cat([seen, own], dim=-1)), query, key)
        found = cpu.joined_attention(query, key, value, context_key, context_value, picked, bias, None)
    keys, values = torch.cat([context_key[rows], key], dim=2), torch.cat([context_value[rows], value], dim=2)
    right = written_out(query, keys, values, torch.cat([seen, own], dim=-1))
    agree(found, right, (query, key, value, context_key, context_value))


def test_without_masks_everything_is_seen():
    query, key, value = queries()
    context_key, context_value = (random(1, KEY_HEADS, CONTEXT, WIDTH) for _ in range(2))
    split = cpu.Split.of(query, key, 1, None, None, None)
    found = cpu.merged_attention(query, key, value, context_key, context_value, split, 0.25)
    keys, values = (
        torch.cat([c.expand(ROWS, -1, -1, -1), o], dim=2) for c, o in ((context_key, key), (context_value, value))
    )
    agree(found, written_out(query, keys, values, None), (query, key, value, context_key, context_value))


@pytest.mark.parametrize("masked", ["not at all", "for all alike", "row by row"])
def test_queries_of_one_key_head_are_grouped(masked: str):
    query, key, value = queries()
    mask = {"not at all": None, "for all alike": causal({})[:1], "row by row": causal({0: 2, 4: 1})}[masked]
    found = cpu.grouped_attention(query, key, value, cpu.grouped_bias(mask, query, key), None)
    # A query in padding sees nothing: what it finds is never read.
    read = torch.ones(ROWS, 1, LENGTH, 1, dtype=torch.bool) if mask is None else mask.any(dim=-1, keepdim=True)
    agree(found * read, written_out(query, key, value, mask) * read, (query, key, value))


def test_each_query_sees_keys_up_to_its_own():
    query, key, value = queries()
    found = cpu.causal_attention(query, key, value, None)
    agree(found, written_out(query, key, value, causal({})), (query, key, value))


def test_in_bfloat16_gradients_are_at_least_as_near_as_the_kernels_own():
    exact = [t.detach().requires_grad_() for t in queries()]
    half = [t.detach().bfloat16().requires_grad_() for t in exact]
    upstream = torch.randn_like(exact[0])
    right = torch.autograd.grad(written_out(*exact, causal({})), exact, upstream)
    found = torch.autograd.grad(cpu.causal_attention(*half, None), half, upstream.bfloat16())
    query, *others = half
    key, value = (t.repeat_interleave(HEADS // KEY_HEADS, dim=1) for t in others)
    kernel = torch.autograd.grad(
        F.scaled_dot_product_attention(query, key, value, is_causal=True), half, upstream.bfloat16()
    )
    for ours, theirs, exactly in zip(found, kernel, right, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - exactly).norm() <= 1.05 * (theirs - exactly).norm()


def test_in_bfloat16_it_is_as_near_as_one_pass_of_the_kernel():
    query, key, value, context_key, context_value = (
        t.detach().bfloat16() for t in (*queries(), *(random(1, KEY_HEADS, CONTEXT, WIDTH) for _ in range(2)))
    )
    split = cpu.Split.of(query, key, 1, None, None, causal({})[:1])
    found = cpu.merged_attention(query, key, value, context_key, context_value, split, None)
    keys, values = (
        torch.cat([c.expand(ROWS, -1, -1, -1), o], dim=2) for c, o in ((context_key, key), (context_value, value))
    )
    mask = F.pad(causal({})[:1], (CONTEXT, 0), value=True)
    right = written_out(query.float(), keys.float(), values.float(), mask)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), right, rtol=0.02, atol=0.02)


def test_rows_are_grouped_where_groups_are_of_like_size():
    assert cpu.Groups(torch.tensor([0, 1, 0, 1]), 2).worth
    assert not cpu.Groups(torch.tensor([0, 0, 0, 0, 1, 2, 3]), 4).worth


def test_other_widths_of_values_and_other_kinds_of_numbers_are_left_to_the_model():
    query, key, value = queries()
    assert cpu.fits(query, key, value)
    assert not cpu.fits(query, key, value[..., :4])
    assert not cpu.fits(query.double(), key.double(), value.double())
    assert not cpu.fits(query[:, :5], key, value)


def test_numbers_that_do_not_stand_side_by_side_are_left_to_the_model():
    query, key, value = queries()
    assert cpu.fits(query, key, value)
    apart = torch.randn(ROWS, HEADS, LENGTH, 2 * WIDTH)[..., ::2]
    assert not cpu.fits(apart, key, value)


def test_a_mask_of_other_numbers_stays_finite():
    query, key, _ = (t.detach().bfloat16() for t in queries())
    mask = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~causal({})[:1], torch.finfo(torch.float32).min)
    bias = cpu.grouped_bias(mask, query, key)
    assert bias is not None
    assert bool(bias.isfinite().all())
