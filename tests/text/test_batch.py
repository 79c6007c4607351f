from __future__ import annotations

import dataclasses

import pytest
import torch

from softprompt.text.batch import IGNORED, Batch


def test_rows_are_padded_in_front():
    batch = Batch.of([[5, 6, 7], [8], [-1, -2]])
    assert batch.ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, -1, -2]]
    assert batch.mask.tolist() == [[True] * 3, [False, False, True], [False, True, True]]
    assert batch.targets.tolist() == [[IGNORED]] * 3
    assert (batch.ids.dtype, batch.mask.dtype, batch.targets.dtype) == (torch.int64, torch.bool, torch.int64)


def test_each_answer_token_is_predicted_from_what_stands_before_it():
    batch = Batch.of([[5, 6], [7], [8]], [[1, 2, 3], [4], []])
    assert batch.ids.tolist() == [[5, 6, 1, 2], [0, 0, 0, 7], [0, 0, 0, 8]]
    assert batch.mask.sum(dim=1).tolist() == [4, 1, 1]
    assert batch.targets.tolist() == [[1, 2, 3], [IGNORED, IGNORED, 4], [IGNORED] * 3]


def test_a_batch_is_not_changed_nor_are_the_rows_it_came_from():
    rows, answers = [[5, 6], [7]], [[1, 2], [3]]
    batch = Batch.of(rows, answers)
    assert (rows, answers) == ([[5, 6], [7]], [[1, 2], [3]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.ids = batch.ids + 1


def test_an_answer_too_few_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        Batch.of([[1], [2]], [[3]])


def test_a_second_segment_is_marked_where_a_row_has_one():
    batch = Batch.of([[5, 6, 7], [8]], reads=[[0], [0]], seconds=[2, None], in_front=False)
    assert batch.segments.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert Batch.of([[5, 6], [8]], seconds=[1, None]).segments.tolist() == [[0, 1], [0, 0]]
    assert Batch.of([[5], [8]], seconds=[None, None]).segments is None
    assert batch.to(batch.ids.device).segments is not None
