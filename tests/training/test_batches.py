from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.heads import generator
from trainer.batches import CachedBatches, bounds


def numbered(rows: int) -> CachedBatches:
    row = torch.arange(rows)
    return CachedBatches(
        {"text": row[:, None].float().repeat(1, 4), "plan": row},
        {"kind": row},
        {"text": (row % 2)[:, None].float()},
    )


@pytest.mark.parametrize("batch_size", [1, 2, 7, 10, 50])
def test_shuffled_batches_hold_every_row_once_and_keep_rows_together(batch_size: int) -> None:
    seen = []
    for batch in numbered(20).shuffled(batch_size, generator()):
        row = batch.targets["kind"]
        assert batch.rows == len(row)
        assert torch.equal(batch.inputs["plan"], row)
        assert torch.equal(batch.inputs["text"], row[:, None].float().repeat(1, 4))
        assert torch.equal(batch.missing["text"][:, 0], (row % 2).float())
        seen += row.tolist()
    assert sorted(seen) == list(range(20))
    assert seen != list(range(20))


def test_the_generator_alone_decides_the_order() -> None:
    orders = [
        [row for batch in numbered(30).shuffled(8, draw) for row in batch.targets["kind"].tolist()]
        for draw in (generator(1), generator(1), generator(2))
    ]
    assert orders[0] == orders[1] != orders[2]


def test_each_epoch_has_its_own_order() -> None:
    draw, batches = generator(1), numbered(30)
    first, second = ([b.targets["kind"].tolist() for b in batches.shuffled(8, draw)] for _ in range(2))
    assert first != second


def test_in_order_keeps_the_order() -> None:
    rows = [row for batch in numbered(11).in_order(4) for row in batch.targets["kind"].tolist()]
    assert rows == list(range(11))


def test_a_lone_last_row_joins_the_batch_before_it() -> None:
    assert bounds(9, 4) == [(0, 4), (4, 9)]
    assert bounds(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert bounds(3, 1) == [(0, 1), (1, 3)]
    assert bounds(1, 4) == [(0, 1)]
    assert bounds(0, 4) == []


def test_half_precision_vectors_become_float32_in_the_batch() -> None:
    vectors = torch.randn(6, 3).half()
    batches = CachedBatches({"text": vectors})
    assert batches.inputs["text"].dtype == torch.float16
    for found in (next(batches.in_order(6)), next(batches.shuffled(6, generator()))):
        assert found.inputs["text"].dtype == torch.float32
        assert torch.equal(found.inputs["text"].sum(), vectors.float().sum()) or found.targets == {}


def test_arrays_become_contiguous_tensors_of_the_marked_rows() -> None:
    vectors, kinds = np.arange(12, dtype=np.float16).reshape(4, 3), np.arange(4)
    picked = CachedBatches.from_arrays(
        {"text": vectors[:, ::2]}, {"kind": kinds}, {}, np.array([True, False, True, True])
    )
    assert picked.inputs["text"].tolist() == [[0, 2], [6, 8], [9, 11]]
    assert picked.inputs["text"].is_contiguous()
    assert picked.targets["kind"].tolist() == [0, 2, 3]
    kinds.flags.writeable = False  # torch warns of these, so they are copied
    whole = CachedBatches.from_arrays({"text": vectors}, {"kind": kinds}, {}, np.ones(4, np.bool_))
    assert whole.inputs["text"].data_ptr() == vectors.ctypes.data
    assert whole.targets["kind"].tolist() == [0, 1, 2, 3]


def test_tensors_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different lengths: \[3, 4\]"):
        CachedBatches({"text": torch.zeros(3, 2)}, {"kind": torch.zeros(4)})
