"""Outputs of every type, from data to predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cachestore.errors import ConfigError
from cachestore.store import Store, open_store
from cli.app import app
from trainer import evaluate, load_config, predict, train

MEANINGS = {"red": "color", "round": "shape", "cheap": "price"}
TEXT = {"name": "text", "type": "text", "encoder": "hashing"}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def data() -> dict[str, list[Any]]:
    """Texts, the properties they name, and two numbers that follow from them."""
    draw = np.random.default_rng(0)
    picked = [[word for word in MEANINGS if draw.random() < 0.5] for _ in range(200)]
    return {
        "text": [f"{' '.join(words)} thing {row}" for row, words in enumerate(picked)],
        "tags": [[MEANINGS[word] for word in words] for words in picked],
        "place": [[float("red" in words), float(len(words))] for words in picked],
        "count": [float(len(words)) for words in picked],
        "red": ["red" in words for words in picked],
    }


def config(*outputs: dict[str, Any], **sections: Any) -> dict[str, Any]:
    trainer = {"epochs": 40, "learning_rate": 0.1, "early_stop": -1, **sections.pop("trainer", {})}
    return {"input_features": [TEXT], "output_features": list(outputs), "trainer": trainer, **sections}


def test_sets_and_vectors_train_evaluate_and_predict(tmp_path: Path, store: Store, data: dict[str, list[Any]]) -> None:
    outputs = ({"name": "tags", "type": "set", "calibration": True}, {"name": "place", "type": "vector"})
    run = train(config(*outputs), data, store, output=tmp_path / "run")
    found = evaluate(run, data, store)
    assert found.metrics["tags"]["jaccard"] > 0.9
    assert found.metrics["place"]["mean_squared_error"] < 0.2
    predicted = predict(run, {"text": data["text"]}, store)
    right = [
        sorted(one) == sorted(other) for one, other in zip(predicted["tags_predictions"], data["tags"], strict=True)
    ]
    assert np.mean(right) == pytest.approx(found.metrics["tags"]["accuracy"])
    assert predicted["tags_probabilities_color"].dtype == np.float32
    assert predicted["place_predictions"].shape == (200, 2)


def test_predicted_sets_and_vectors_are_json_in_a_csv(tmp_path: Path, data: dict[str, list[Any]]) -> None:
    outputs = ({"name": "tags", "type": "set"}, {"name": "place", "type": "vector"})
    with open_store(tmp_path / "store") as store:
        train(config(*outputs), data, store, output=tmp_path / "run")
    (tmp_path / "new.csv").write_text("text\nred round thing\n", encoding="utf-8")
    arguments = ["predict", str(tmp_path / "run"), str(tmp_path / "new.csv"), "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out.csv")])
    assert done.exit_code == 0, done.output
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert set(json.loads(row["tags_predictions"])) == {"color", "shape"}
    assert len(json.loads(row["place_predictions"])) == 2
    done = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out.parquet")])
    assert done.exit_code == 0, done.output


def test_a_run_ends_with_the_final_evaluation_of_its_validation_and_test_rows(
    tmp_path: Path, store: Store, data: dict[str, list[Any]]
) -> None:
    outputs = (
        {"name": "red", "type": "binary", "calibration": True},
        {"name": "count", "type": "number", "clip": [0, 2]},
    )
    run = train(config(*outputs), data, store, output=tmp_path / "run")
    written = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    assert list(written) == ["validation", "test"]
    for split, evaluation in written.items():
        assert evaluation["rows"] == run.rows[split]
        for name, output in evaluation["outputs"].items():
            for metric, estimate in output["metrics"].items():
                assert estimate["value"] == pytest.approx(run.metrics[split][name][metric], nan_ok=True)
    assert written["test"]["outputs"]["red"]["temperature"] != 1.0
    assert predict(run, data, store)["count_predictions"].max() <= 2.0


def test_any_metric_chooses_the_best_epoch_under_any_of_its_names(
    tmp_path: Path, store: Store, data: dict[str, list[Any]]
) -> None:
    red, tags = {"name": "red", "type": "binary"}, {"name": "tags", "type": "set"}
    for field, metric, name in (("red", "brier_score", "brier"), ("tags", "f1_macro", "f1_macro")):
        chosen = {"epochs": 2, "validation_field": field, "validation_metric": metric}
        run = train(config(red, tags, trainer=chosen), data, store, output=tmp_path / field)
        assert run.validation_metric == name
        assert name in run.metrics["train"][field]


def test_a_comparator_learns_whether_two_texts_say_the_same(
    tmp_path: Path, store: Store, data: dict[str, list[Any]]
) -> None:
    pairs = {"one": data["text"], "other": data["text"][1:] + data["text"][:1]}
    same = [first == second for first, second in zip(data["red"], data["red"][1:] + data["red"][:1], strict=True)]
    written = {
        **config({"name": "same", "type": "binary"}, trainer={"epochs": 40}),
        "input_features": [{**TEXT, "name": "one"}, {**TEXT, "name": "other"}],
        "combiner": {"type": "comparator", "entity_1": ["one"], "entity_2": ["other"]},
    }
    run = train(written, {**pairs, "same": same}, store, output=tmp_path / "run")
    assert run.metrics["train"]["same"]["accuracy"] > 0.9


def test_faults_of_outputs_and_combiners_are_told_with_their_places() -> None:
    faulty = config(
        {"name": "tags", "type": "set", "calibration": "yes"},
        {"name": "count", "type": "number", "clip": [5, 1]},
        combiner={"type": "comparator", "entity_1": ["text"], "entity_2": ["texd"]},
    )
    with pytest.raises(ConfigError) as error:
        load_config(faulty)
    lines = str(error.value).splitlines()[1:]
    assert lines[0].startswith("output_features.tags.calibration: must be true or false")
    assert "clip needs the least value first" in lines[1]
    assert lines[2] == "combiner.entity_2: there is no input 'texd'; did you mean 'text'?"


@pytest.mark.parametrize(
    "changes",
    [
        {"output_features": [{"name": "x", "type": "set", "loss": {"class_weights": {"a": 2.0}}, "threshold": 0.3}]},
        {"output_features": [{"name": "x", "type": "vector", "loss": "huber"}]},
        {"output_features": [{"name": "x", "type": "category", "loss": {"type": "focal", "class_weights": [1, 2]}}]},
        {"output_features": [{"name": "x", "type": "binary", "loss": "focal", "decoder": "mlp_classifier"}]},
        {"output_features": [{"name": "x", "type": "number", "clip": [0, 5]}], "combiner": "ft_transformer"},
        {"output_features": [{"name": "x", "type": "number"}], "combiner": {"type": "gated_fusion"}},
    ],
)
def test_a_resolved_config_loads_back_to_an_equal_one(changes: dict[str, Any]) -> None:
    resolved = load_config({"input_features": [TEXT], **changes})
    assert load_config(resolved.resolved()) == resolved
