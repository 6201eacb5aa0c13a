"""Splits: reproducible, in the shares asked for, and stable where they promise it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.model_selection import StratifiedKFold

from cachestore.errors import DataError
from trainer import split as splitting
from trainer.schema.preparation import (
    DatetimeSplit,
    FixedSplit,
    GroupSplit,
    HashSplit,
    KFoldSplit,
    RandomSplit,
    StratifySplit,
)

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


# by time


def days(*months: int | None) -> list[str | None]:
    return [None if month is None else f"2024-{month:02}-01" for month in months]


def test_a_datetime_split_tests_on_the_last_rows() -> None:
    order = np.random.default_rng(1).permutation(1000)
    moments = np.datetime64("2024-01-01T00:00:00") + order.astype("timedelta64[h]")
    parts = split(DatetimeSplit(column="when"), pa.array(moments.astype(str).tolist()), 1000, 1, "d.csv")
    assert counts(parts) == [700, 100, 200]
    assert order[parts == 0].max() < order[parts == 1].min()
    assert order[parts == 1].max() < order[parts == 2].min()
    parts = split(DatetimeSplit(column="when", probabilities=(0.5, 0.0, 0.5)), pa.array(moments), 1000, 1, "d.csv")
    assert counts(parts) == [500, 0, 500]
    parts = split(DatetimeSplit(column="when", probabilities=(0.9, 0.1, 0.0)), pa.array(moments), 1000, 1, "d.csv")
    assert counts(parts) == [900, 100, 0]


def test_rows_of_one_moment_stay_together() -> None:
    cells = pa.array(days(*[1] * 8, 2, 3, 3, 3))
    parts = split(DatetimeSplit(column="when", probabilities=(0.5, 0.25, 0.25)), cells, 12, 1, "d.csv")
    assert parts.tolist() == [0] * 8 + [1, 2, 2, 2]
    parts = split(DatetimeSplit(column="when", probabilities=(0.5, 0.0, 0.5)), cells, 12, 1, "d.csv")
    assert parts.tolist() == [0] * 8 + [2, 2, 2, 2]


def test_a_row_without_a_date_is_refused_where_it_is_used() -> None:
    cells = pa.array(days(1, None, 2, 3, 4))
    config = DatetimeSplit(column="when", probabilities=(0.5, 0.25, 0.25))
    with pytest.raises(DataError, match=r"column 'when', data row 1 .*the cell is empty.*fill it in"):
        split(config, cells, 5, 1, "d.csv")
    used = np.array([True, False, True, True, True])
    parts = splitting.split(config, {"when": cells}, 5, 1, "d.csv", used=used)
    assert parts[used].tolist() == [0, 0, 1, 2]
    with pytest.raises(DataError, match=r"data row 0 .*is not a date"):
        split(config, pa.array(["soon"]), 1, 1, "d.csv")


# by group


@given(st.lists(st.integers(0, 30), min_size=3, max_size=200).filter(lambda ids: len(set(ids)) > 2), st.integers(0, 99))
def test_no_group_is_in_two_parts(ids: list[int], seed: int) -> None:
    parts = split(GroupSplit(column="who"), pa.array(ids), len(ids), seed, "d.csv")
    for one in set(ids):
        assert len(set(parts[np.array(ids) == one].tolist())) == 1
    assert min(counts(parts)) > 0


def test_a_group_split_has_about_the_shares() -> None:
    ids = np.random.default_rng(0).integers(0, 2000, 20_000)
    parts = split(GroupSplit(column="who"), pa.array(ids), 20_000, 1, "d.csv")
    assert counts(parts) == pytest.approx([14_000, 2_000, 4_000], rel=0.02)
    other = split(GroupSplit(column="who", seed=2), pa.array(ids), 20_000, 1, "d.csv")
    assert (parts != other).any()
    assert (other == split(GroupSplit(column="who"), pa.array(ids), 20_000, 2, "d.csv")).all()


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match=r"column 'who': the group split of 9 rows leaves none for"):
        split(GroupSplit(column="who"), pa.array([1] * 5 + [2] * 4), 9, 1, "d.csv")


# folds


def folds(rows: int, columns: dict[str, Any] | None = None, seed: int = 1, **settings: Any) -> list[Any]:
    """The parts of every fold."""
    config = KFoldSplit(folds=settings.pop("folds", 5), **settings)
    return [
        splitting.split(config.model_copy(update={"fold": fold}), columns or {}, rows, seed, "d.csv")
        for fold in range(config.folds)
    ]


def test_every_row_is_tested_in_one_fold() -> None:
    every = folds(103)
    assert (sum((parts == 2).astype(int) for parts in every) == 1).all()
    assert {int((parts == 2).sum()) for parts in every} == {20, 21}
    assert {int((parts == 1).sum()) for parts in every} == {8}
    assert all((a == b).all() for a, b in zip(every, folds(103), strict=True))
    assert any((a != b).any() for a, b in zip(every, folds(103, seed=2), strict=True))
    assert counts(folds(10, folds=2, validation=0.0)[1]) == [5, 0, 5]


def test_folds_are_stratified_as_those_of_scikit_learn() -> None:
    classes = np.repeat(["a", "b", "c"], [50, 33, 7])
    every = folds(90, {"kind": pa.array(classes.tolist())}, column="kind")
    reference = StratifiedKFold(5, shuffle=True, random_state=0).split(classes, classes)
    wanted = sorted(tuple(np.unique(classes[test], return_counts=True)[1].tolist()) for _, test in reference)
    found = sorted(tuple(np.unique(classes[parts == 2], return_counts=True)[1].tolist()) for parts in every)
    assert np.abs(np.array(found) - np.array(wanted)).max() <= 1
    assert (sum((parts == 2).astype(int) for parts in every) == 1).all()


@given(st.lists(st.integers(0, 40), min_size=10, max_size=200).filter(lambda ids: len(set(ids)) > 6))
def test_no_group_is_on_two_sides_of_a_fold(ids: list[int]) -> None:
    groups = np.array(ids)
    kinds = pa.array([str(one % 2) for one in ids])
    every = folds(len(ids), {"who": pa.array(ids), "kind": kinds}, column="kind", group="who", folds=3)
    assert (sum((parts == 2).astype(int) for parts in every) == 1).all()
    for parts in every:
        for one in set(ids):
            assert len(set(parts[groups == one].tolist())) == 1


def test_folds_of_groups_are_about_as_large_as_each_other() -> None:
    groups = np.random.default_rng(0).zipf(1.5, 3000) % 200
    every = folds(3000, {"who": pa.array(groups)}, group="who")
    sizes = sorted(int((parts == 2).sum()) for parts in every)
    assert sizes[-1] == np.bincount(groups).max()
    assert sizes[-2] - sizes[0] <= 0.1 * sizes[0]


def test_a_fold_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="fold must be less than folds"):
        KFoldSplit(folds=3, fold=3)
