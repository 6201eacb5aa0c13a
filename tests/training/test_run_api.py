"""A run in Python: trained on a frame, found again by its path, and put to use without its store being named."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from cachestore.errors import ConfigError, UsageError
from cachestore.store import open_store
from trainer import Run, load_config, predict, train

CONFIG = {
    "input_features": [{"name": "text", "type": "text", "encoder": {"type": "hashing", "dim": 32}}],
    "output_features": [{"name": "kind", "type": "category"}],
    "trainer": {"epochs": 3, "learning_rate": 0.05, "batch_size": 16},
}


def frame(count: int = 60) -> pd.DataFrame:
    kinds = [("bill", "login", "parcel")[n % 3] for n in range(count)]
    return pd.DataFrame(
        {"text": [f"about my {kind}, {n}" for n, kind in enumerate(kinds)], "kind": kinds}, range(500, 500 + count)
    )


def test_a_run_is_found_again_and_knows_its_store(tmp_path: Path) -> None:
    data, place = frame(), tmp_path / "run"
    run = train(CONFIG, data, tmp_path / "store", output=place)
    assert run.encoded == len(data)
    again = Run.load(place)
    assert again == run
    assert os.fspath(again) == str(place)
    found = again.predict(data)
    assert found.encoded == 0
    assert again.evaluate(data).rows == len(data)
    with open_store(tmp_path / "store") as store:
        assert predict(again, data, store)["kind_predictions"].tolist() == found["kind_predictions"].tolist()
    other = run.predict(data, tmp_path / "other")
    assert other.encoded == len(data)


def test_predictions_of_a_frame_have_its_index(tmp_path: Path) -> None:
    data = frame()
    run = train(CONFIG, data, tmp_path / "store", output=tmp_path / "run")
    found = run.predict(data[["text"]].iloc[::-1])
    assert found.index.equals(data.index[::-1])
    joined = data.join(found.to_pandas())
    assert (joined["kind"] == joined["kind_predictions"]).mean() > 0.9
    assert found.to_pandas()["kind_probabilities_bill"].dtype == "float32"
    assert run.predict({"text": ["about my bill"]}).index is None


def test_without_a_store_it_is_that_of_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHESTORE_STORE", str(tmp_path / "usual"))
    run = train(CONFIG, frame(), output=tmp_path / "run")
    assert run.store == str(tmp_path / "usual")


def test_no_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no run at"):
        Run.load(tmp_path / "absent")


def test_columns_that_a_frame_lacks_stand_beside_the_other_faults(tmp_path: Path) -> None:
    wrong = {**CONFIG, "trainer": {"epohcs": 3}, "output_features": [{"name": "knd", "type": "category"}]}
    with pytest.raises(ConfigError) as error:
        train(wrong, frame(), tmp_path / "store")
    assert "output_features.knd: the DataFrame has no column 'knd'; did you mean 'kind'?" in str(error.value)
    assert "trainer.epohcs: unknown key" in str(error.value)
    assert load_config(CONFIG).output_features[0].name == "kind"
