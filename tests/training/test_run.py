from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cachestore.errors import (
    ColumnNotFound,
    ConfigError,
    DamageError,
    DataError,
    EncoderError,
    StoreNotWritable,
    TrainingDiverged,
    UsageError,
)
from cachestore.store import Store, open_store
from tests.store import tiny_models
from trainer import checkpoint, evaluate, load_config, predict, train
from trainer.events import Building, EpochDone, Event, Notice, PhaseBegun
from trainer.runs import Run
from trainer.schema.preparation import RandomSplit

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS = {
    "billing": ("invoice charged twice", "refund my payment", "wrong amount on the bill"),
    "login": ("password does not work", "cannot sign in", "account is locked out"),
    "delivery": ("parcel never arrived", "package is late", "courier lost the box"),
}
Row = dict[str, str]


def messages(count: int, first: int = 0) -> list[Row]:
    """Rows whose topic follows from their text, urgency from their wait, and cost from both."""
    found = []
    for number in range(first, first + count):
        topic = list(WORDS)[number % 3]
        wait = number * 7 % 50
        text = f"{WORDS[topic][number // 3 % 3]}, case {number}"
        found.append(
            {
                "text": text,
                "topic": topic,
                "plan": ("free", "team", "pro")[number // 2 % 3],
                "wait": str(wait),
                "urgent": "yes" if wait > 25 else "no",
                "cost": str(10 * wait + 5),
            }
        )
    return found


def write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_MINIMAL)
        writer.writeheader()
        writer.writerows(rows)
    return path


def config(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "input_features": [{"name": "text", "type": "text", "encoder": {"type": "hashing", "dim": 64}}],
        "output_features": [{"name": "topic", "type": "category"}],
        "trainer": {"epochs": 12, "batch_size": 16, "learning_rate": 0.05},
    }
    return {**found, **changes}


def everything() -> dict[str, Any]:
    """Every type of input and output at once."""
    return config(
        input_features=[
            {"name": "text", "type": "text", "encoder": {"type": "hashing", "dim": 64}},
            {"name": "plan", "type": "category"},
            {"name": "wait", "type": "number"},
            {"name": "is_free", "type": "binary", "column": "free"},
        ],
        output_features=[
            {"name": "topic", "type": "category"},
            {"name": "urgent", "type": "binary"},
            {"name": "cost", "type": "number", "preprocessing": {"normalization": "zscore"}},
        ],
        trainer={"epochs": 40, "batch_size": 16, "learning_rate": 0.05},
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "messages.csv", messages(120))


def test_a_run_learns_and_says_what_it_did(tmp_path: Path, store: Store, data: Path) -> None:
    run = train(config(), data, store, output=tmp_path / "run")
    assert run.metrics["test"]["topic"]["accuracy"] > 0.9
    assert set(run.metrics) == {"train", "validation", "test"}
    assert run.rows == {"train": 84, "validation": 12, "test": 24}
    assert (run.encoded, run.hits, run.skipped, run.dropped, run.left_out) == (120, 0, 0, {}, 0)
    assert set(run.seconds) == {"read", "build", "gather", "epochs", "evaluate", "write"}
    assert {path.name for path in run.path.iterdir()} == {
        "run.json",
        "config.yaml",
        "metrics.jsonl",
        "model.safetensors",
        "model.json",
        "evaluation.json",
        "predictions.safetensors",
        "report.json",
        "report.html",
        "summary.json",
    }
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["split"]) for line in lines[:3]] == [(1, "train"), (1, "validation"), (2, "train")]
    assert lines[-1]["split"] == "test"
    assert lines[-1]["metrics"] == run.metrics["test"]
    assert max(line["epoch"] for line in lines) == run.epochs
    best = [line for line in lines if line["split"] == "validation" and line["epoch"] == run.best_epoch]
    assert best[0]["metrics"]["topic"].items() <= run.metrics["validation"]["topic"].items()


def test_the_second_run_encodes_nothing_and_gives_the_same_bytes(tmp_path: Path, store: Store, data: Path) -> None:
    first = train(config(), data, store, output=tmp_path / "first")
    second = train(config(), data, store, output=tmp_path / "second")
    assert (second.encoded, second.hits) == (0, 120)
    for name in ("model.safetensors", "model.json", "config.yaml"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()
    other = train(config(random_seed=1), data, store, output=tmp_path / "third")
    assert (other.path / "model.safetensors").read_bytes() != (first.path / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"preprocessing": {"split": {"type": "random", "probabilities": [0.5, 0.2, 0.3]}}},
        {"output_features": [{"name": "urgent", "type": "binary"}]},
        {"trainer": {"epochs": 1}},
        {"combiner": {"type": "concat", "num_fc_layers": 1, "output_size": 8}},
    ],
    ids=["split", "output", "trainer", "combiner"],
)
def test_only_the_encoder_decides_what_is_encoded(
    tmp_path: Path, store: Store, data: Path, changed: dict[str, Any]
) -> None:
    train(config(trainer={"epochs": 1}), data, store, output=tmp_path / "first")
    assert train(config(**changed), data, store, output=tmp_path / "second").encoded == 0


def test_added_rows_alone_are_encoded(tmp_path: Path, store: Store) -> None:
    quick = config(trainer={"epochs": 1})
    train(quick, write(tmp_path / "a.csv", messages(90)), store, output=tmp_path / "first")
    run = train(quick, write(tmp_path / "a.csv", messages(100)), store, output=tmp_path / "second")
    assert (run.encoded, run.hits) == (10, 90)


def with_free(rows: list[Row]) -> list[Row]:
    return [{**row, "free": "1" if row["plan"] == "free" else "0"} for row in rows]


def test_every_type_of_feature_trains_evaluates_and_predicts(tmp_path: Path, store: Store) -> None:
    data = write(tmp_path / "all.csv", with_free(messages(240)))
    run = train(everything(), data, store, output=tmp_path / "run")
    test = run.metrics["test"]
    assert test["topic"]["accuracy"] > 0.9
    assert test["urgent"]["roc_auc"] > 0.9
    assert test["cost"]["r2"] > 0.9
    assert test["cost"]["mean_absolute_error"] < 60  # in the units of the column: 5 to 495
    assert set(test) == {"topic", "urgent", "cost", "combined"}

    fresh = with_free(messages(30, first=1000))
    found = evaluate(run.path, write(tmp_path / "fresh.csv", fresh), store)
    assert found.rows == 30
    assert found.metrics["topic"]["accuracy"] > 0.9
    unlabelled = [{name: row[name] for name in ("text", "plan", "wait", "free")} for row in fresh]
    predicted = predict(run, write(tmp_path / "unlabelled.csv", unlabelled), store)
    assert predicted.encoded == 0
    assert set(predicted.columns) == {
        "topic_predictions",
        "topic_probability",
        *(f"topic_probabilities_{name}" for name in WORDS),
        "urgent_predictions",
        "urgent_probability",
        "urgent_probabilities_yes",
        "urgent_probabilities_no",
        "cost_predictions",
    }
    columns = predicted.columns
    right = np.mean(columns["topic_predictions"] == np.array([row["topic"] for row in fresh], object))
    assert right == pytest.approx(found.metrics["topic"]["accuracy"])
    right = np.mean(columns["urgent_predictions"] == np.array([row["urgent"] for row in fresh], object))
    assert right == pytest.approx(found.metrics["urgent"]["accuracy"])
    errors = np.abs(columns["cost_predictions"] - np.array([float(row["cost"]) for row in fresh]))
    assert errors.mean() == pytest.approx(found.metrics["cost"]["mean_absolute_error"], rel=1e-4)
    total = sum(columns[f"topic_probabilities_{name}"] for name in WORDS)
    assert np.allclose(total, 1)
    assert np.allclose(
        columns["topic_probability"], np.max([columns[f"topic_probabilities_{n}"] for n in WORDS], axis=0)
    )
    assert np.allclose(columns["urgent_probabilities_yes"] + columns["urgent_probabilities_no"], 1)


def test_predictions_keep_the_order_and_leave_gaps_where_a_row_cannot_be_used(
    tmp_path: Path, store: Store, data: Path
) -> None:
    run = train(config(), data, store, output=tmp_path / "run")
    rows = messages(9, first=500)
    whole = predict(run, write(tmp_path / "whole.csv", rows), store)
    path = tmp_path / "broken.csv"
    write(path, rows)
    lines = path.read_bytes().split(b"\r\n")
    lines[4] = b"\xff\xfe broken" + lines[4][lines[4].rindex(b'"') + 1 :]
    path.write_bytes(b"\r\n".join(lines))
    found = predict(run, path, store)
    assert found.predicted.tolist() == [True] * 3 + [False] + [True] * 5
    assert found.columns["topic_predictions"][3] is None
    assert np.isnan(found.columns["topic_probability"][3])
    assert (found.dropped, found.skipped, [cell.row for cell in found.skipped_cells]) == ({"text: skipped": 1}, 1, [3])
    kept = found.predicted
    assert found.columns["topic_predictions"][kept].tolist() == whole.columns["topic_predictions"][kept].tolist()


def latin(path: Path, rows: list[Row], changes: dict[int, dict[str, str]]) -> Path:
    """The rows with some cells changed, in Latin-1: an é is then no UTF-8."""
    changed = [{**row, **changes.get(number, {})} for number, row in enumerate(rows)]
    write(path, changed)
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    return path


def test_rows_whose_table_cells_are_not_utf8_are_skipped_and_teach_nothing(tmp_path: Path, store: Store) -> None:
    parts = ("train", "validation", "train", "test")
    rows = [{**row, "part": parts[n // 3 % 4]} for n, row in enumerate(with_free(messages(240)))]
    chosen = everything() | {"preprocessing": {"split": {"type": "fixed", "column": "part"}}}
    chosen["output_features"][0]["preprocessing"] = {"missing_value_strategy": "fill_with_const", "fill_value": "none"}
    broken = {
        0: {"wait": "é", "plan": "never seen", "topic": "no topic", "cost": "no number"},
        3: {"plan": "é", "wait": "1e30"},
        4: {"free": "é"},
        5: {"topic": "é"},
        6: {"urgent": "é", "plan": "é"},
        7: {"cost": "é"},
        8: {"part": "é"},
    }
    data = latin(tmp_path / "data.csv", rows, broken)
    run = train(chosen, data, store, output=tmp_path / "run")
    assert run.skipped == 8
    assert {(cell.row, cell.column, cell.where) for cell in run.skipped_cells} == {
        (row, column, str(data)) for row, cells in broken.items() for column, value in cells.items() if value == "é"
    }
    assert run.dropped == {f"{column}: skipped": 1 for column in ("wait", "free", "topic", "cost", "part")} | {
        "plan: skipped": 2
    }
    assert sum(run.rows.values()) == 233
    assert Run.load(run.path).to_json() == run.to_json()

    kept = [row for number, row in enumerate(rows) if number not in broken]
    clean = train(chosen, write(tmp_path / "kept.csv", kept), store, output=tmp_path / "clean")
    assert model_of(clean)["features"] == model_of(run)["features"]
    assert (clean.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()

    found = evaluate(run, data, store)
    assert (found.rows, found.skipped) == (234, 7)  # how the data is split does not matter now
    predicted = predict(run, data, store)
    assert np.flatnonzero(~predicted.predicted).tolist() == [0, 3, 4, 6]  # the columns of outputs do not matter either
    assert predicted.columns["topic_predictions"][0] is None
    assert np.isnan(predicted.columns["cost_predictions"][0])
    assert (predicted.skipped, len(predicted.skipped_cells)) == (4, 4)


def test_skipped_cells_say_which_file_they_are_of(tmp_path: Path, store: Store, data: Path) -> None:
    validation = latin(tmp_path / "validation.csv", messages(9, first=200), {2: {"text": "é"}})
    test = latin(tmp_path / "test.csv", messages(9, first=300), {4: {"topic": "é"}})
    run = train(config(), data, store, validation=validation, test=test, output=tmp_path / "run")
    assert [(cell.where, cell.row, cell.column) for cell in run.skipped_cells] == [
        (str(validation), 2, "text"),
        (str(test), 4, "topic"),
    ]
    assert run.rows == {"train": 120, "validation": 8, "test": 8}


def test_a_run_works_with_another_store_and_from_another_place(tmp_path: Path, store: Store, data: Path) -> None:
    run = train(config(), data, store, output=tmp_path / "run")
    expected = predict(run, data, store)
    shutil.move(run.path, tmp_path / "moved")
    with open_store(tmp_path / "elsewhere") as elsewhere:
        found = predict(tmp_path / "moved", data, elsewhere)
        again = predict(tmp_path / "moved", data, elsewhere)
    assert (found.encoded, again.encoded, again.hits) == (120, 0, 120)
    for name, values in expected.columns.items():
        assert np.array_equal(values, found.columns[name])


def test_a_model_named_by_a_relative_path_is_found_from_another_place(
    tmp_path: Path, store: Store, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_models.save(tmp_path / "work" / "models" / "tiny")
    (tmp_path / "elsewhere").mkdir()
    encoder = {"type": "auto_transformer", "pretrained_model_name_or_path": "models/tiny"}
    chosen = config(input_features=[{"name": "text", "type": "text", "encoder": encoder}], trainer={"epochs": 1})
    monkeypatch.chdir(tmp_path / "work")
    run = train(chosen, data, store, output=tmp_path / "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    fresh = write(tmp_path / "fresh.csv", messages(3, first=500))
    assert predict(run, fresh, store).encoded == 3
    place = str(tmp_path / "work" / "models" / "tiny")
    for name in ("config.yaml", "model.json"):
        found = yaml.safe_load((run.path / name).read_text(encoding="utf-8"))
        written = found.get("config", found)["input_features"][0]["encoder"]
        assert written["pretrained_model_name_or_path"] == place


def test_a_run_opens_as_it_was_told(tmp_path: Path, store: Store, data: Path) -> None:
    run = train(config(), data, store, output=tmp_path / "run")
    assert Run.load(run.path).to_json() == run.to_json()
    kept = load_config(run.path / "config.yaml")
    assert kept.preprocessing.split == RandomSplit()  # what was used is written out
    assert kept == load_config({**config(), "preprocessing": {"split": {"type": "random"}}})
    with pytest.raises(UsageError, match="There is no run at"):
        Run.load(tmp_path / "absent")


def test_files_given_for_validation_and_test_leave_the_data_whole(tmp_path: Path, store: Store, data: Path) -> None:
    test = write(tmp_path / "test.csv", messages(30, first=200))
    run = train(config(), data, store, test=test, output=tmp_path / "run")
    assert run.rows == {"train": 120, "validation": 0, "test": 30}
    assert "validation" not in run.metrics
    assert run.epochs == 12
    validation = write(tmp_path / "validation.csv", messages(15, first=300))
    run = train(config(), data, store, validation=validation, test=test, output=tmp_path / "run2")
    assert run.rows == {"train": 120, "validation": 15, "test": 30}
    assert set(run.manifests) == {"train", "validation", "test"}


def test_a_split_of_the_config_holds_and_what_a_file_replaces_is_left_out(
    tmp_path: Path, store: Store, data: Path
) -> None:
    test = write(tmp_path / "test.csv", messages(30, first=200))
    told: list[Event] = []
    chosen = config(preprocessing={"split": {"type": "random", "probabilities": [0.5, 0.25, 0.25]}})
    run = train(chosen, data, store, test=test, output=tmp_path / "run", progress=told.append)
    assert run.rows == {"train": 60, "validation": 30, "test": 30}
    assert run.left_out == 30
    assert [event.text.split(" of ")[0] for event in told if isinstance(event, Notice)] == ["30 rows"]


def test_a_fixed_split_follows_its_column(tmp_path: Path, store: Store) -> None:
    parts = ("train", "validation", "test")
    data = write(tmp_path / "fixed.csv", [{**row, "part": parts[n // 3 % 3]} for n, row in enumerate(messages(63))])
    chosen = config(preprocessing={"split": {"type": "fixed", "column": "part"}}, trainer={"epochs": 1})
    run = train(chosen, data, store, output=tmp_path / "run")
    assert run.rows == {"train": 21, "validation": 21, "test": 21}


def missing_texts() -> list[Row]:
    return [{**row, "text": "" if n % 4 == 0 else row["text"]} for n, row in enumerate(messages(120))]


def model_of(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "model.json").read_text())
    return found


def test_missing_texts_are_a_zero_vector_and_an_indicator(tmp_path: Path, store: Store, data: Path) -> None:
    whole = train(config(), data, store, output=tmp_path / "whole")
    assert model_of(whole)["features"]["text"]["missing"] is False
    gaps = write(tmp_path / "gaps.csv", missing_texts())
    run = train(config(), gaps, store, output=tmp_path / "run")
    assert model_of(run)["features"]["text"]["missing"] is True
    assert run.dropped == {}
    found = predict(run, gaps, store)
    assert found.predicted.all()
    assert len({found.columns["topic_probability"][n] for n in range(0, 120, 4)}) == 1
    assert predict(whole, gaps, store).predicted.all()  # a run without the indicator takes them as zero vectors


def test_missing_texts_can_be_dropped_or_filled(tmp_path: Path, store: Store) -> None:
    gaps = write(tmp_path / "gaps.csv", missing_texts())

    def text(**preprocessing: str) -> dict[str, Any]:
        feature = {"name": "text", "type": "text", "encoder": {"type": "hashing", "dim": 64}}
        return config(input_features=[{**feature, "preprocessing": preprocessing}])

    dropped = train(text(missing_value_strategy="drop_row"), gaps, store, output=tmp_path / "dropped")
    assert dropped.dropped == {"text: missing": 30}
    assert sum(dropped.rows.values()) == 90
    filled = train(
        text(missing_value_strategy="fill_with_const", fill_value="no words"), gaps, store, output=tmp_path / "filled"
    )
    assert (filled.dropped, model_of(filled)["features"]["text"]["missing"]) == ({}, False)
    alone = write(tmp_path / "one.csv", [{"text": "", "n": "1"}, {"text": "no words", "n": "2"}])
    found = predict(filled, alone, store).columns["topic_probability"]
    assert found[0] == found[1]


def test_rows_without_a_target_are_dropped_and_counted(tmp_path: Path, store: Store) -> None:
    rows = [{**row, "topic": "" if n < 7 else row["topic"]} for n, row in enumerate(messages(120))]
    run = train(config(), write(tmp_path / "gaps.csv", rows), store, output=tmp_path / "run")
    assert run.dropped == {"topic: missing": 7}
    assert sum(run.rows.values()) == 113


def test_two_features_may_read_one_column(tmp_path: Path, store: Store, data: Path) -> None:
    encoders = ({"type": "hashing", "dim": 64}, {"type": "hashing", "dim": 32}, {"type": "hashing", "dim": 64})
    inputs = [
        {"name": f"text{n}", "type": "text", "column": "text", "encoder": encoder} for n, encoder in enumerate(encoders)
    ]
    run = train(config(input_features=inputs), data, store, output=tmp_path / "run")
    assert [model_of(run)["features"][f"text{n}"]["dim"] for n in range(3)] == [64, 32, 64]
    assert len(run.manifests["train"]) == 1
    assert run.encoded == 240
    assert predict(run, data, store).predicted.all()
    assert {name.name for name in store.names()} == {"messages"}


def test_a_text_may_be_made_of_several_columns(tmp_path: Path, store: Store) -> None:
    rows = [{"first": f"a {n % 2}", "second": f"b {n % 3}", "n": str(n % 2)} for n in range(120)]
    encoder = {
        "type": "auto_transformer",
        "pretrained_model_name_or_path": str(tiny_models.save(tmp_path / "model")),
        "prompt": {"template": "{second}; {first}"},
    }
    inputs = [{"name": "both", "type": "text", "encoder": encoder}]
    asked = config(input_features=inputs, output_features=[{"name": "n", "type": "category"}], trainer={"epochs": 2})
    data = write(tmp_path / "rows.csv", rows)
    run = train(asked, data, store, output=tmp_path / "run")
    assert run.encoded == 6, "there are six distinct texts"
    assert len(store.embed(["b 0; a 1"], {**encoder, "prompt": ""})) == 1
    fresh = write(tmp_path / "fresh.csv", [*rows[:5], {"first": "a 9", "second": "b 9", "n": "1"}])
    assert predict(run, fresh, store).predicted.all()


def test_auto_is_settled_and_told(tmp_path: Path, store: Store, data: Path) -> None:
    auto = config(trainer={"epochs": 2, "learning_rate": "auto", "batch_size": "auto"})
    run = train(auto, data, store, output=tmp_path / "run")
    assert run.batch_size == 128
    assert 1e-4 <= run.learning_rate <= 3e-2
    sgd = config(trainer={"learning_rate": "auto", "optimizer": {"type": "sgd"}})
    with pytest.raises(ConfigError, match="auto is measured for adam and adamw, not for sgd"):
        train(sgd, data, store, output=tmp_path / "sgd")


def test_batch_norm_trains_on_any_number_of_rows_but_not_one_by_one(tmp_path: Path, store: Store, data: Path) -> None:
    combiner = {"type": "concat", "num_fc_layers": 1, "norm": "batch"}
    last_alone = config(combiner=combiner, trainer={"epochs": 1, "batch_size": 83})  # of 84 rows
    assert train(last_alone, data, store, output=tmp_path / "run").epochs == 1
    with pytest.raises(ConfigError, match=r"trainer\.batch_size: 1 leaves batch norm nothing"):
        train(config(combiner=combiner, trainer={"batch_size": 1}), data, store, output=tmp_path / "one")


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_other_optimizers_train(tmp_path: Path, store: Store, data: Path, kind: str) -> None:
    rate = 0.05 if kind == "adamw" else 2.0
    chosen = config(trainer={"epochs": 30, "batch_size": 16, "learning_rate": rate, "optimizer": {"type": kind}})
    assert train(chosen, data, store, output=tmp_path / "run").metrics["test"]["topic"]["accuracy"] > 0.9


def test_events_tell_phases_in_order_and_every_epoch(tmp_path: Path, store: Store, data: Path) -> None:
    told: list[Event] = []
    run = train(config(), data, store, output=tmp_path / "run", progress=told.append)
    phases = [event.phase for event in told if isinstance(event, PhaseBegun)]
    assert phases == ["read", "build", "gather", "epochs", "evaluate", "write"]
    assert [event.epoch for event in told if isinstance(event, EpochDone)] == list(range(1, run.epochs + 1))
    assert any(isinstance(event, Building) and event.progress.rows == 120 for event in told)


def test_an_interrupt_leaves_the_metrics_so_far_and_no_finished_run(tmp_path: Path, store: Store, data: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(), data, store, output=tmp_path / "run", progress=interrupt)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["epoch"] for line in lines} == {1, 2, 3}
    with pytest.raises(UsageError, match="did not finish"):
        predict(tmp_path / "run", data, store)
    train(config(), data, store, output=tmp_path / "run")  # it may be replaced
    assert predict(tmp_path / "run", data, store).predicted.all()


@pytest.mark.parametrize(("rate", "error", "written"), [(0.05, KeyboardInterrupt, 2), (1e30, TrainingDiverged, 0)])
def test_a_rerun_that_does_not_finish_leaves_the_finished_run(
    tmp_path: Path, store: Store, data: Path, rate: float, error: type[BaseException], written: int
) -> None:
    run = train(config(), data, store, output=tmp_path / "runs" / "run")
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    seen: set[Path] = set()

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone):
            seen.update((tmp_path / "runs").glob("*/metrics.jsonl"))
            if event.epoch == 2:
                raise KeyboardInterrupt

    other = config(trainer={"epochs": 12, "learning_rate": rate}, combiner={"type": "concat", "num_fc_layers": 1})
    with pytest.raises(error):
        train(other, data, store, output=run.path, progress=watch)
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    assert list((tmp_path / "runs").iterdir()) == [run.path]
    assert len(seen) == written  # metrics of both were on disk while it ran, where it came so far
    again = train(config(random_seed=1), data, store, output=run.path)
    assert again.path == run.path
    assert Run.load(run.path).to_json() == again.to_json()
    assert list((tmp_path / "runs").iterdir()) == [run.path]


def test_a_config_of_the_users_own_is_no_run(tmp_path: Path, store: Store, data: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "config.yaml").write_text("mine")
    with pytest.raises(UsageError, match="holds no run"):
        train(config(), data, store, output=tmp_path / "work")
    assert [path.read_text() for path in (tmp_path / "work").iterdir()] == ["mine"]


def test_using_a_run_leaves_no_name_in_the_store(tmp_path: Path, store: Store, data: Path) -> None:
    run = train(config(), data, store, output=tmp_path / "run")
    new = write(tmp_path / "new.csv", messages(10, first=500))
    assert predict(run, new, store).encoded == 10
    assert evaluate(run, new, store).encoded == 0
    assert [name.name for name in store.names()] == ["messages"]


def test_a_store_that_is_only_read_serves_what_it_holds(tmp_path: Path, data: Path) -> None:
    with open_store(tmp_path / "store") as opened:
        run = train(config(), data, opened, output=tmp_path / "run")
        metrics = evaluate(run, data, opened).metrics
    with open_store(tmp_path / "store", mode="r") as opened:
        assert train(config(), data, opened, output=tmp_path / "again").metrics == run.metrics
        assert evaluate(run, data, opened).metrics == metrics
        with pytest.raises(StoreNotWritable):
            predict(run, write(tmp_path / "new.csv", messages(10, first=500)), opened)


def test_data_that_changes_between_its_two_readings_is_an_error(tmp_path: Path, store: Store, data: Path) -> None:
    def edit(event: Event) -> None:
        if event == PhaseBegun("build"):  # the cells are read, the texts are not
            write(data, messages(120, first=1))

    with pytest.raises(DataError, match="changed while it was read"):
        train(config(), data, store, output=tmp_path / "run", progress=edit)
    assert not (tmp_path / "run").exists()
    run = train(config(), data, store, output=tmp_path / "run")
    write(data, messages(120))
    with pytest.raises(DataError, match="changed while it was read"):
        evaluate(run, data, store, progress=edit)


def test_faults_are_found_before_anything_is_encoded_or_written(tmp_path: Path, store: Store, data: Path) -> None:
    number = config(output_features=[{"name": "text2", "type": "number", "column": "plan"}])
    with pytest.raises(DataError, match="plan"):
        train(number, data, store, output=tmp_path / "run")
    with pytest.raises(ColumnNotFound, match="did you mean 'topic'"):
        train(config(output_features=[{"name": "topik", "type": "category"}]), data, store, output=tmp_path / "run")
    unknown = write(tmp_path / "test.csv", [{**row, "topic": "other"} for row in messages(5)])
    with pytest.raises(DataError, match="other"):
        train(config(), data, store, test=unknown, output=tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds no run"):
        train(config(), data, store, output=tmp_path / "mine")
    assert store.names() == []
    assert not (tmp_path / "run").exists()


def test_a_split_with_no_usable_row_is_an_error(tmp_path: Path, store: Store, data: Path) -> None:
    empty = write(tmp_path / "test.csv", [{**row, "topic": ""} for row in messages(5)])
    with pytest.raises(DataError, match=r"leaves 0 rows for test.*5 rows for topic: missing"):
        train(config(), data, store, test=empty, output=tmp_path / "run")
    run = train(config(), data, store, output=tmp_path / "run")
    with pytest.raises(DataError, match="no row to evaluate: 5 rows for topic: missing"):
        evaluate(run, empty, store)


def test_an_encoder_that_changed_since_the_run_is_refused(tmp_path: Path, store: Store, data: Path) -> None:
    run = train(config(), data, store, output=tmp_path / "run")
    model = model_of(run)
    model["features"]["text"]["spec"]["dim"] = 65
    (run.path / "model.json").write_text(json.dumps(model))
    with pytest.raises((EncoderError, DamageError), match="dim"):
        predict(run, data, store)


def test_a_run_of_a_newer_format_is_refused(tmp_path: Path, store: Store, data: Path) -> None:
    run = train(config(), data, store, output=tmp_path / "run")
    mark = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps({**mark, "format": checkpoint.FORMAT + 1}))
    with pytest.raises(UsageError, match="Upgrade cachestore"):
        evaluate(run, data, store)


def test_tables_in_memory_need_no_file(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = messages(120)
    table = {name: [row[name] for row in rows] for name in rows[0]}
    run = train(config(), table, store)
    assert run.path == Path("runs/run")
    assert predict(run, {"text": table["text"][:4]}, store).columns["topic_predictions"].shape == (4,)


WARM = """
import json, sys
from cachestore import open_store
from trainer import evaluate, predict, train
config, data, store, output = sys.argv[1:]
with open_store(store) as opened:
    run = train(config, data, opened, output=output)
    predict(run, data, opened)
    evaluate(run, data, opened)
print(json.dumps([run.encoded, sorted(sys.modules)]))
"""


def test_a_warm_run_imports_no_heavy_module(tmp_path: Path, data: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(config(trainer={"epochs": 2, "learning_rate": "auto", "use_mixed_precision": True}))
    )
    arguments = [tmp_path / "config.yaml", data, tmp_path / "store", tmp_path / "run"]
    for expected in (120, 0):
        done = subprocess.run(
            [sys.executable, "-c", WARM, *map(str, arguments)], capture_output=True, text=True, check=True, cwd=ROOT
        )
        encoded, loaded = json.loads(done.stdout)
        assert encoded == expected
    bare = subprocess.run(
        [sys.executable, "-c", "import json, sys, torch; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    added = {".".join(name.split(".")[:2]) for name in set(loaded) - set(json.loads(bare.stdout))}
    heavy = {"torch._dynamo", "torch._inductor", "torch.distributed", "torch.utils"}
    assert not added & heavy
    tops = {name.split(".")[0] for name in loaded}
    assert not tops & {"transformers", "torchvision", "tokenizers", "pandas", "sklearn", "scipy", "peft", "ray"}


def test_a_number_output_begins_at_the_mean_of_its_targets(tmp_path: Path, store: Store) -> None:
    table = {"x": [str(row % 7) for row in range(40)], "y": [str(1000 + row % 3) for row in range(40)]}
    chosen = load_config(
        {
            "input_features": [{"name": "x", "type": "number"}],
            "output_features": [{"name": "y", "type": "number"}],
            "trainer": {"epochs": 1, "learning_rate": 1e-6},
            "preprocessing": {"split": {"type": "random", "probabilities": [0.8, 0.1, 0.1]}},
        }
    )
    notices: list[Event] = []
    run = train(chosen, table, store, output=tmp_path / "run", progress=notices.append)
    assert run.metrics["validation"]["y"]["root_mean_squared_error"] < 10
    assert (run.validation_field, run.validation_metric) == ("y", "mean_squared_error")
    whole = load_config(
        {**chosen.resolved(), "preprocessing": {"split": {"type": "random", "probabilities": [1.0, 0.0, 0.0]}}}
    )
    train(whole, table, store, output=tmp_path / "whole", progress=notices.append)
    assert [notice.text for notice in notices if isinstance(notice, Notice)] == [
        "There are no validation rows: every epoch is run, and the weights of the last one are kept."
    ]
