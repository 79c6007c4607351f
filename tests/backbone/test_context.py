from __future__ import annotations

import torch

from softprompt.backbone.context import Context, Stretch

# Two sites that share neither head count nor widths, and values narrower than keys.
SHAPES = ((2, 4, 3), (1, 6, 6))


def stretch(length: int) -> Stretch:
    return Stretch(
        tuple(torch.randn(length, heads, width) for heads, width, _ in SHAPES),
        tuple(torch.randn(length, heads, width) for heads, _, width in SHAPES),
    )


def test_stretches_of_an_entry_stand_one_behind_the_other():
    a, b, c = stretch(2), stretch(3), stretch(1)
    context = Context.of([[a, b], [c]])
    assert context.size == 2
    assert context.width == 5
    assert context.lengths.tolist() == [5, 1]
    for kind in ("keys", "values"):
        for site, table in enumerate(getattr(context, kind)):
            parts = [getattr(s, kind)[site] for s in (a, b, c)]
            assert torch.equal(table[0], torch.cat(parts[:2]).transpose(0, 1))
            assert torch.equal(table[1, :, :1], parts[2].transpose(0, 1))
            assert not table[1, :, 1:].any()


def test_an_entry_may_be_empty_among_others():
    context = Context.of([[], [stretch(2)], []])
    assert context.lengths.tolist() == [0, 2, 0]
    assert all(not table[0].any() for table in context.keys)


def test_without_a_single_position_there_is_no_context():
    assert Context.of([]) is None
    assert Context.of([[], []]) is None
    assert Context.of([[stretch(0)]]) is None


def test_gradients_reach_every_stretch():
    parts = [stretch(2), stretch(1), stretch(3)]
    tensors = [t.requires_grad_() for s in parts for t in (*s.keys, *s.values)]
    context = Context.of([[parts[0], parts[1]], [parts[2]]])
    sum(t.sum() for t in (*context.keys, *context.values)).backward()
    assert all(bool((t.grad == 1).all()) for t in tensors)


def test_a_single_stretch_is_not_copied():
    alone = stretch(4)
    context = Context.of([[alone]])
    assert context.keys[0].untyped_storage().data_ptr() == alone.keys[0].untyped_storage().data_ptr()


def test_a_stretch_tells_its_size():
    assert stretch(5).length == 5
    assert stretch(5).nbytes == 5 * 4 * sum(h * (k + v) for h, k, v in SHAPES)


def test_a_copy_shares_neither_memory_nor_graph():
    whole = torch.randn(8, 1, 4, requires_grad=True)
    part = Stretch((whole[2:4],), (whole[4:6],))
    copy = part.copy()
    assert torch.equal(copy.keys[0], part.keys[0])
    assert copy.nbytes == sum(t.untyped_storage().nbytes() for t in (*copy.keys, *copy.values))
    assert not copy.keys[0].requires_grad
