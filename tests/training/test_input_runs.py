"""Every type of input from a file to predictions, and what stands in for a missing text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from cachestore.errors import ConfigError, DataError
from cachestore.store import Store, open_store
from trainer import stored_inputs, train
from trainer.apply import predict
from trainer.config import load_config
from trainer.events import Clock
from trainer.prepare import Prepared, prepare

HASHING = {"type": "hashing", "dim": 16}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


def table(rows: int = 240) -> pa.Table:
    """Tags, a vector, a day, an age and a plan, one cell of each missing in places; every one says whether ``yes``."""
    draw = np.random.default_rng(0)
    yes = draw.random(rows) < 0.5
    late = np.where(yes, 180, 0) + draw.integers(0, 120, rows)

    def some(values: list[Any]) -> list[Any]:
        return [None if place % 17 == 3 else value for place, value in enumerate(values)]

    return pa.table(
        {
            "tags": pa.array(some([["old", "big"] if one else ["new", "big"] for one in yes]), pa.list_(pa.string())),
            "vector": some(
                [[float(one) + noise, 1.0] for one, noise in zip(yes, draw.normal(0, 0.3, rows), strict=True)]
            ),
            "day": some([(np.datetime64("2023-01-01") + int(days)).astype(str) for days in late]),
            "age": some([30.0 + 20 * one for one in yes]),
            "plan": some(["free" if one else "paid" for one in yes]),
            "yes": yes,
        }
    )


INPUTS: list[dict[str, Any]] = [
    {"name": "tags", "type": "set"},
    {"name": "tags as columns", "column": "tags", "type": "set", "encoder": "onehot"},
    {"name": "vector", "type": "vector", "encoder": {"type": "dense", "output_size": 4}},
    {"name": "vector as it is", "column": "vector", "type": "vector", "encoder": "passthrough"},
    {"name": "day", "type": "date"},
    {"name": "age", "type": "number", "preprocessing": {"normalization": "iq", "outlier_strategy": "fill_with_mean"}},
    {"name": "plan", "type": "category", "encoder": "sparse"},
]


def config(inputs: list[dict[str, Any]], **sections: Any) -> dict[str, Any]:
    return {
        "input_features": inputs,
        "output_features": [{"name": "yes", "type": "binary"}],
        "trainer": {"epochs": 15, "batch_size": 32, "learning_rate": 0.05},
        **sections,
    }


@pytest.mark.parametrize("feature", INPUTS, ids=lambda feature: feature["name"])
def test_every_type_of_input_learns_and_predicts_with_its_indicator(
    feature: dict[str, Any], tmp_path: Path, store: Store
) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(table(), path)
    preprocessing = {**feature.get("preprocessing", {}), "missing_value_indicator": True}
    run = train(config([{**feature, "preprocessing": preprocessing}]), path, store, output=tmp_path / "run")
    assert run.metrics["test"]["yes"]["roc_auc"] > 0.85
    found = predict(run.path, path, store)
    assert found.predicted.all()
    told = found.columns["yes_probabilities_True"]
    absent = np.arange(240) % 17 == 3
    assert np.ptp(told[absent]) == pytest.approx(0, abs=1e-6)  # nothing is known of them


def test_an_inactive_feature_is_left_out_and_checked(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(table(), path)
    absent = {"name": "no such column", "type": "number", "active": False}
    loaded = load_config(config([INPUTS[5], absent]))
    assert [feature.name for feature in loaded.input_features] == ["age"]
    assert load_config(loaded.resolved()) == loaded
    assert train(loaded, path, store, output=tmp_path / "run").rows["train"] > 0
    with pytest.raises(ConfigError, match="normalization: there is no 'zscor'"):
        load_config(config([INPUTS[5], {**absent, "preprocessing": {"normalization": "zscor"}}]))
    with pytest.raises(ConfigError, match="input_features: no feature is active"):
        load_config(config([absent]))
    outputs = [{"name": "yes", "type": "binary"}, {"name": "size", "type": "number", "active": False}]
    assert [one.name for one in load_config(config([INPUTS[5]], output_features=outputs)).output_features] == ["yes"]


TEXTS = ["a", "b", None, "a", "c", None]


def texts(tmp_path: Path, store: Store, cells: list[str | None] = TEXTS, **preprocessing: Any) -> Prepared:
    path = tmp_path / "texts.parquet"
    split = [0] * (len(cells) - 1) + [1]
    parquet.write_table(
        pa.table({"t": cells, "yes": [bool(place % 2) for place in range(len(cells))], "split": split}), path
    )
    inputs = [{"name": "t", "type": "text", "encoder": HASHING, "preprocessing": preprocessing}]
    written = config(inputs, preprocessing={"split": {"type": "fixed"}})
    return prepare(load_config(written), {"train": path}, store, Clock(None))


@pytest.mark.parametrize(
    ("strategy", "train_like", "validation_like"),
    [("bfill", "a", "c"), ("ffill", "b", "c"), ("fill_with_mode", "a", "a"), ("fill_with_const", "z", "z")],
)
def test_a_missing_text_takes_the_vector_of_another(
    strategy: str, train_like: str, validation_like: str, tmp_path: Path, store: Store
) -> None:
    settings = {"missing_value_strategy": strategy, **({"fill_value": "z"} if strategy == "fill_with_const" else {})}
    for indicator in (False, True):
        found = texts(tmp_path, store, **settings, missing_value_indicator=indicator)
        encoder = load_config(config([{"name": "t", "type": "text", "encoder": HASHING}])).input_features[0].encoder
        wanted = {text: store.embed([text], encoder)[0] for text in "abcz"}
        train_rows, validation_rows = (found.batches[name].inputs["t"].numpy() for name in ("train", "validation"))
        for row, text in enumerate(["a", "b", train_like, "a", "c"]):
            assert (train_rows[row] == wanted[text]).all()
        assert (validation_rows[0] == wanted[validation_like]).all()
        assert found.states["t"].missing == indicator
        if indicator:
            assert found.batches["train"].missing["t"][:, 0].tolist() == [0, 0, 1, 0, 0]
        state = found.states["t"]
        assert isinstance(state, stored_inputs.FittedText)
        assert stored_inputs.FittedText.from_json(state.to_json()) == state


def test_a_mode_needs_a_text(tmp_path: Path, store: Store) -> None:
    with pytest.raises(DataError, match="'t' has no value in any training row to fill missing ones with"):
        texts(tmp_path, store, [None, None, "a"], missing_value_strategy="fill_with_mode")
