"""Samples of the rows, and classes made more even: which rows, how many, and never those that validate or test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cachestore.errors import ConfigError
from cachestore.store import open_store
from trainer.config import load_config
from trainer.events import Clock
from trainer.prepare import Prepared, prepare
from trainer.sampling import balanced, sampled
from trainer.schema.preparation import Preprocessing

CLASSES = np.repeat([0, 1, 2], [100, 40, 7])


def test_a_sample_takes_the_same_share_of_every_part() -> None:
    parts = np.repeat(np.array([0, 1, 2, -1], np.int8), [700, 100, 3, 50])
    taken = sampled(parts, Preprocessing(sample_ratio=0.1), 1)
    assert [int(taken[parts == part].sum()) for part in (0, 1, 2, -1)] == [70, 10, 1, 0]
    assert (taken == sampled(parts, Preprocessing(sample_ratio=0.1), 1)).all()
    assert (taken != sampled(parts, Preprocessing(sample_ratio=0.1), 2)).any()
    assert sampled(parts, Preprocessing(sample_size=80), 1).sum() == pytest.approx(80, abs=1)
    assert (sampled(parts, Preprocessing(sample_size=9999), 1) == (parts >= 0)).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 1.0), st.integers(0, 9))
def test_oversampling_repeats_rows_of_rare_classes_evenly(classes: list[int], ratio: float, seed: int) -> None:
    array = np.array(classes)
    places = balanced(array, Preprocessing(oversample_minority=ratio), seed)
    assert places is not None
    counts, before = np.bincount(array[places], minlength=5), np.bincount(array, minlength=5)
    wanted = np.where(before > 0, np.maximum(before, np.rint(before.max() * ratio)), 0)
    assert counts.tolist() == wanted.tolist()
    times = np.bincount(places, minlength=len(array))
    assert times.min() >= 1
    for kind in set(classes):
        assert np.ptp(times[array == kind]) <= 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 1.0), st.integers(0, 9))
def test_undersampling_leaves_rows_of_frequent_classes_out(classes: list[int], ratio: float, seed: int) -> None:
    array = np.array(classes)
    places = balanced(array, Preprocessing(undersample_majority=ratio), seed)
    assert places is not None
    counts, before = np.bincount(array[places], minlength=5), np.bincount(array, minlength=5)
    least = before[before > 0].min()
    assert counts.tolist() == np.minimum(before, np.rint(least / ratio)).tolist()
    assert len(set(places.tolist())) == len(places)


def test_neither_is_neither() -> None:
    assert balanced(CLASSES, Preprocessing(), 1) is None


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="exclude each other"):
        Preprocessing(oversample_minority=0.5, undersample_majority=0.5)
    with pytest.raises(ValidationError, match="exclude each other"):
        Preprocessing(sample_ratio=0.5, sample_size=5)


def config(outputs: list[dict[str, Any]] | None = None, **preprocessing: Any) -> dict[str, Any]:
    return {
        "input_features": [{"name": "x", "type": "number", "preprocessing": {"normalization": None}}],
        "output_features": outputs or [{"name": "kind", "type": "category"}],
        "preprocessing": {"split": {"type": "fixed"}, **preprocessing},
    }


def test_balancing_takes_one_output_with_classes() -> None:
    two = [{"name": "kind", "type": "category"}, {"name": "yes", "type": "binary"}]
    for outputs in (two, [{"name": "size", "type": "number"}]):
        with pytest.raises(ConfigError, match="oversample_minority: takes one output, a category or a binary"):
            load_config(config(outputs, oversample_minority=1.0))


def prepared(tmp_path: Path, **preprocessing: Any) -> tuple[Prepared, list[str]]:
    """Rows of a split column, numbered by x: 147 train, 20 validate and 20 test, half of them of the class "a"."""
    split = ["train"] * len(CLASSES) + ["validation"] * 20 + ["test"] * 20
    kinds = ["abc"[kind] for kind in CLASSES] + ["a", "b"] * 20
    lines = [f"{place},{kind},{part}" for place, (kind, part) in enumerate(zip(kinds, split, strict=True))]
    (tmp_path / "d.csv").write_text("\n".join(["x,kind,split", *lines]), encoding="utf-8")
    said: list[str] = []
    with open_store(tmp_path / "store") as store:
        clock = Clock(lambda event: said.append(str(event)))
        return prepare(load_config(config(**preprocessing)), {"train": tmp_path / "d.csv"}, store, clock), said


def test_only_training_rows_are_balanced(tmp_path: Path) -> None:
    found, said = prepared(tmp_path, oversample_minority=0.5)
    train = found.batches["train"]
    assert np.bincount(train.targets["kind"].numpy()).tolist() == [100, 50, 50]
    numbers, times = np.unique(train.inputs["x"].numpy(), return_counts=True)
    assert numbers.tolist() == list(range(147))
    assert times[:100].tolist() == [1] * 100
    for name in ("validation", "test"):
        assert found.batches[name].rows == 20
    assert any("200 training rows are made of 147" in line for line in said)


def test_a_sample_is_told_and_counted(tmp_path: Path) -> None:
    found, said = prepared(tmp_path, sample_ratio=0.5)
    assert {name: rows.rows for name, rows in found.batches.items()} == {"train": 74, "validation": 10, "test": 10}
    assert found.left_out == 187 - 94
    assert any("94 of 187 rows" in line for line in said)
