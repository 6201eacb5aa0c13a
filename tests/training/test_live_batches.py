"""Batches of cells: every row once, rows of like length together, and the same rows beside vectors that stay in the store."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from trainer.batches import CachedBatches, bounds, digest
from trainer.live.batches import LiveBatches
from trainer.live.cells import TextCells


def cells(lengths: NDArray[np.int64], present: NDArray[np.bool_] | None = None) -> TextCells:
    """Texts of these lengths, whose tokens are the number of their row."""
    texts = [np.full((1, length), row, np.int64) for row, length in enumerate(lengths.tolist())]
    return TextCells.of(texts, np.ones(len(lengths), np.bool_) if present is None else present)


def batches(rows: int, *, bucketed: bool = True, seed: int = 0) -> LiveBatches:
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, 60, rows)
    return LiveBatches(
        {"text": cells(lengths)},
        {"wait": torch.arange(rows, dtype=torch.float16)[:, None]},
        {"kind": torch.arange(rows)},
        {"text": torch.arange(rows, dtype=torch.float32)[:, None]},
        np.arange(rows) + 100,
        bucketed,
    )


def drawn(made: LiveBatches, batch_size: int, seed: int = 0) -> list[list[int]]:
    """The rows of every batch, after a look at that all its parts are of these rows."""
    found = []
    for batch in made.shuffled(batch_size, torch.Generator().manual_seed(seed)):
        rows = batch.targets["kind"].tolist()
        tokens = batch.inputs["text"]
        assert isinstance(tokens, TextCells)
        assert [int(text[0, 0]) for text in tokens.texts()] == rows
        assert batch.inputs["wait"].dtype == torch.float32  # type: ignore[union-attr]
        assert batch.inputs["wait"][:, 0].tolist() == rows  # type: ignore[index]
        assert batch.missing["text"][:, 0].tolist() == rows
        assert batch.numbers is not None
        assert (batch.numbers - 100).tolist() == rows
        assert batch.rows == len(rows)
        found.append(rows)
    return found


@pytest.mark.parametrize("bucketed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 8, 33, 40, 1000])
def test_every_row_comes_once_in_batches_of_the_usual_sizes(rows: int, bucketed: bool) -> None:
    made = batches(rows, bucketed=bucketed)
    found = drawn(made, 8)
    assert sorted(row for batch in found for row in batch) == list(range(rows))
    assert [len(batch) for batch in found] == [stop - start for start, stop in bounds(rows, 8)]
    assert found == drawn(made, 8)
    if rows > 8:
        assert found != drawn(made, 8, seed=1)
    assert [batch.targets["kind"].tolist() for batch in made.in_order(8)] == [
        list(range(start, stop)) for start, stop in bounds(rows, 8)
    ]


def test_without_buckets_the_order_is_that_of_cached_rows() -> None:
    cached = CachedBatches({"wait": torch.arange(50.0)[:, None]}, {"kind": torch.arange(50)})
    order = [batch.targets["kind"].tolist() for batch in cached.shuffled(8, torch.Generator().manual_seed(0))]
    assert drawn(batches(50, bucketed=False), 8) == order


def test_rows_of_like_length_go_together_and_batches_do_not_come_by_length() -> None:
    made = batches(2000)
    lengths = made.lengths()
    assert (lengths == made.cells["text"].lengths()).all()

    def padded(found: list[list[int]]) -> int:
        return sum(len(batch) * int(lengths[batch].max()) for batch in found)

    found = drawn(made, 16)
    assert padded(found) < 1.1 * lengths.sum()
    assert padded(drawn(batches(2000, bucketed=False), 16)) > 1.6 * lengths.sum()
    longest = [int(lengths[batch].max()) for batch in found]
    assert longest != sorted(longest)
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_cells_are_taken_joined_and_filled_row_by_row() -> None:
    present = np.array([True, False, True, True, True])
    made = cells(np.array([3, 1, 2, 2, 4]), present)
    taken = made.take(np.array([4, 0, 4]))
    assert [text.tolist() for text in taken.texts()] == [[[4] * 4], [[0] * 3], [[4] * 4]]
    assert taken.lengths().tolist() == [4, 3, 4]
    joined = TextCells.joined([taken, TextCells.of([], np.zeros(0, np.bool_)), made])
    assert [text.tolist() for text in joined.texts()] == [text.tolist() for text in (*taken.texts(), *made.texts())]
    assert joined.present.tolist() == [True, True, True, *present.tolist()]
    filled = made.filled(np.array([[7, 8]]), ~present)
    assert filled.texts()[1].tolist() == [[7, 8]]
    assert filled.present.all()
    assert filled.lengths().tolist() == [3, 2, 2, 2, 4]
    alike = TextCells.of([np.array([[5]]), np.array([[6]]), np.array([[6]]), np.array([[5]])], np.ones(4, np.bool_))
    every = np.ones(4, np.bool_)
    assert alike.most_frequent(every).tolist() == [[5]]  # type: ignore[union-attr]
    assert alike.most_frequent(np.array([True, True, True, False])).tolist() == [[6]]  # type: ignore[union-attr]
    assert alike.most_frequent(~every) is None
    assert len(TextCells.joined([])) == 0


def test_a_changed_text_changes_what_the_rows_are_known_by_and_a_copy_of_them_does_not() -> None:
    made = batches(20)
    assert digest({"train": pickle.loads(pickle.dumps(made))}) == digest({"train": made})
    taken = made.cells["text"].take(np.arange(20))
    assert isinstance(taken, TextCells)
    other = taken.filled(np.array([[9]]), np.arange(20) == 7)
    changed = LiveBatches({"text": other}, made.inputs, made.targets, made.missing, made.numbers)
    assert digest({"train": changed}) != digest({"train": made})
