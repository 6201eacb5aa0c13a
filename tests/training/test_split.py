"""Splits: reproducible, in the shares asked for, and stable where they promise it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachestore.errors import DataError
from trainer import split as splitting
from trainer.schema.preparation import FixedSplit, HashSplit, RandomSplit, StratifySplit

SHARES = (0.7, 0.1, 0.2)


def split(config: Any, cells: Any, rows: int, seed: int, where: str) -> Any:
    """By the cells of the one column that ``config`` names."""
    return splitting.split(config, dict.fromkeys(config.columns(), cells), rows, seed, where)


def counts(parts: Any) -> list[int]:
    return np.bincount(parts, minlength=3).tolist()


def test_a_random_split_has_the_shares_and_the_seed_decides() -> None:
    one = split(RandomSplit(), None, 1000, 42, "d.csv")
    assert one.dtype == np.int8
    assert counts(one) == [700, 100, 200]
    assert (one == split(RandomSplit(), None, 1000, 42, "d.csv")).all()
    assert (one != split(RandomSplit(), None, 1000, 43, "d.csv")).any()
    assert (one == split(RandomSplit(seed=42), None, 1000, 7, "d.csv")).all()


@given(st.integers(3, 60), st.integers(0, 2**32))
def test_every_share_above_0_gets_a_row(rows: int, seed: int) -> None:
    assert min(counts(split(RandomSplit(), None, rows, seed, "d.csv"))) >= 1
    assert counts(split(RandomSplit(probabilities=(0.5, 0.0, 0.5)), None, rows, seed, "d.csv"))[1] == 0


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"d\.csv: the random split of 2 rows leaves none for validation"):
        split(RandomSplit(), None, 2, 1, "d.csv")


def test_a_stratified_split_has_the_shares_in_every_class() -> None:
    classes = np.repeat(["a", "b", "c"], [500, 300, 13])
    np.random.default_rng(1).shuffle(classes)
    parts = split(StratifySplit(column="c"), pa.array(classes.tolist()), len(classes), 42, "d.csv")
    for name in "abc":
        here = counts(parts[classes == name])
        assert here == pytest.approx([share * sum(here) for share in SHARES], abs=1.01)
    assert counts(parts) == pytest.approx([share * len(classes) for share in SHARES], abs=1.01)


def test_many_small_classes_share_too() -> None:
    classes = [str(i // 4) for i in range(400)]
    parts = split(StratifySplit(column="c"), pa.array(classes), 400, 42, "d.csv")
    assert counts(parts) == [280, 40, 80]


def test_a_class_of_few_rows_trains() -> None:
    cells = pa.array(["a"] * 50 + ["rare", "rare", None])
    parts = split(StratifySplit(column="c"), cells, 53, 42, "d.csv")
    assert parts[50:].tolist() == [0, 0, 0]
    assert (parts == split(StratifySplit(column="c"), cells, 53, 42, "d.csv")).all()
    assert (parts != split(StratifySplit(column="c"), cells, 53, 43, "d.csv")).any()


def test_stratifying_by_a_column_of_ids_is_refused() -> None:
    with pytest.raises(DataError, match="column 'id': the stratify split of 100 rows leaves none for validation"):
        split(StratifySplit(column="id"), pa.array(range(100)), 100, 42, "d.csv")


@given(st.permutations(range(200)), st.integers(1, 50))
def test_a_hash_split_is_stable_under_append_and_reorder(order: list[int], more: int) -> None:
    config = HashSplit(column="id")
    before = split(config, pa.array([f"row {i}" for i in range(200)]), 200, 1, "d.csv")
    cells = [f"row {i}" for i in [*order, *range(200, 200 + more)]]
    after = split(config, pa.array(cells), len(cells), 2, "other.csv")
    assert (after[:200] == before[order]).all()


def test_a_hash_split_keeps_equal_values_together_whatever_their_type() -> None:
    config = HashSplit(column="id")
    numbers = split(config, pa.array([*range(300), *range(300)]), 600, 1, "d.csv")
    assert (numbers[:300] == numbers[300:]).all()
    assert (numbers[:300] == split(config, pa.array([str(i) for i in range(300)]), 300, 1, "d.csv")).all()


def test_a_hash_split_has_about_the_shares() -> None:
    parts = split(HashSplit(column="id"), pa.array([str(i) for i in range(20_000)]), 20_000, 1, "d.csv")
    assert counts(parts) == pytest.approx([14_000, 2_000, 4_000], rel=0.1)
    assert (split(HashSplit(column="id", probabilities=(0.9, 0.1, 0.0)), pa.array(range(500)), 500, 1, "d") < 2).all()


def test_a_hash_split_is_frozen() -> None:
    # another assignment would move rows of every user's test set into training
    parts = split(HashSplit(column="id"), pa.array([f"id {i}" for i in range(30)]), 30, 1, "d.csv")
    assert "".join(map(str, parts.tolist())) == "000100010001000000020000001200"


@pytest.mark.parametrize(
    "cells",
    [
        [0, 1, 2, 0],
        [0.0, 1.0, 2.0, 0.0],
        ["0", "1", "2", "0"],
        ["train", "val", "test", "Training"],
        ["training", "validation", " TEST", "train"],
    ],
    ids=str,
)
def test_a_fixed_split(cells: list[Any]) -> None:
    assert split(FixedSplit(), pa.array(cells), 4, 1, "d.csv").tolist() == [0, 1, 2, 0]


def test_a_fixed_split_of_other_words_is_refused_with_its_row() -> None:
    with pytest.raises(DataError, match=r"d\.csv, column 'split', data row 2 \(counted from 0\): '3' is no split"):
        split(FixedSplit(), pa.array([0, 1, 3]), 3, 1, "d.csv")
    with pytest.raises(DataError, match=r"data row 1 .*the cell is empty"):
        split(FixedSplit(), pa.array([0, None]), 2, 1, "d.csv")
    with pytest.raises(DataError, match="leaves none for train"):
        split(FixedSplit(), pa.array([1, 2]), 2, 1, "d.csv")


def test_a_fixed_split_may_lack_validation() -> None:
    assert split(FixedSplit(column="part"), pa.array(["train", "test"]), 2, 1, "d.csv").tolist() == [0, 2]
