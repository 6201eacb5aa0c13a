"""`cachestore train`, `evaluate` and `predict`, from a file to predictions."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from pyarrow import parquet

from cli.train import text as train_text
from tests.commands.conftest import Command, Done
from trainer import checkpoint

Train: TypeAlias = Callable[[Path], Done]

CONFIG = """\
input_features:
  - {name: text, type: text, encoder: {type: hashing, dim: 64}}
  - {name: stars, type: number}
output_features:
  - {name: colour, type: category}
  - {name: sold, type: binary}
  - {name: price, type: number}
trainer: {epochs: 3, batch_size: 16, learning_rate: 0.05, validation_metric: loss, validation_field: colour}
"""
COLOURS = ("red", "green", "blue")


def rows(start: int, count: int) -> list[list[object]]:
    return [
        [f"a {COLOURS[n % 3]} thing, number {n}", n % 5, COLOURS[n % 3], ("yes", "no")[n % 2], 10.5 + n % 3]
        for n in range(start, start + count)
    ]


def write(path: Path, cells: list[list[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "stars", "colour", "sold", "price"])
        writer.writerows(cells)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "things.csv", rows(0, 60))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture
def run(command: Command, data: Path, config: Path, store: Path, tmp_path: Path) -> Path:
    """A finished run."""
    path = tmp_path / "runs" / "first"
    done = command("train", data, "-c", config, "--output", path, "--store", store, "--quiet")
    assert done.code == 0, done.err
    return path


def trained(command: Command, *arguments: object) -> Any:
    done = command("train", *arguments, "--json")
    assert done.code == 0, done.out
    return done.json


def test_train_encodes_what_is_missing_once_and_says_so(
    command: Command, data: Path, config: Path, store: Path, tmp_path: Path
) -> None:
    done = command("train", data, "-c", config, "--output", tmp_path / "cold", "--store", store)
    assert done.code == 0, done.err
    assert "60 vectors encoded, 0 cells found" in done.out
    assert "things.csv" in done.err
    for word in ("colour", "accuracy", "train", "validation", "test", str(tmp_path / "cold")):
        assert word in done.out

    warm = trained(command, data, "-c", config, "--output", tmp_path / "warm", "--store", store)
    assert {"run", "metrics", "epochs", "seconds", "encoded", "hits"} <= warm.keys()
    assert (warm["encoded"], warm["hits"], warm["epochs"]) == (0, 60, 3)
    assert warm["run"] == str(tmp_path / "warm")
    assert warm["metrics"].keys() == {"train", "validation", "test"}
    assert {"colour", "sold", "price"} <= warm["metrics"]["test"].keys()
    assert json.loads((tmp_path / "warm" / "summary.json").read_text(encoding="utf-8"))["run"] == warm["run"]


def test_set_changes_one_value(command: Command, data: Path, config: Path, store: Path, run: Path) -> None:
    changed = trained(
        command, data, "-c", config, "--output", run, "--store", store, "--set", "trainer.epochs=2",
        "--set", "combiner.num_fc_layers=1",
    )  # fmt: skip
    assert changed["epochs"] == 2
    resolved = (run / "config.yaml").read_text(encoding="utf-8")
    assert "num_fc_layers: 1" in resolved


def test_files_of_their_own_for_validation_and_test(
    command: Command, data: Path, config: Path, store: Path, tmp_path: Path
) -> None:
    validation = write(tmp_path / "validation.csv", rows(60, 12))
    test = write(tmp_path / "test.csv", rows(72, 9))
    done = trained(
        command, data, "-c", config, "--validation", validation, "--test", test, "--output", tmp_path / "run",
        "--store", store,
    )  # fmt: skip
    assert done["rows"] == {"train": 60, "validation": 12, "test": 9}
    assert done["encoded"] == 81


def test_without_output_a_run_gets_a_free_place(
    command: Command, data: Path, config: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {trained(command, data, "-c", config, "--store", store)["run"] for _ in range(2)}
    assert len(places) == 2
    assert all((tmp_path / place / "summary.json").exists() for place in places)


def test_evaluate_gives_the_metrics_of_new_rows(command: Command, run: Path, store: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "new.csv", rows(60, 10))
    done = command("evaluate", run, new, "--store", store, "--json")
    assert done.code == 0, done.out
    assert done.json["rows"] == 10
    assert {"colour", "sold", "price"} <= done.json["metrics"].keys()
    assert (done.json["encoded"], done.json["hits"]) == (10, 0)
    text = command("evaluate", run, new, "--store", store).out
    assert "10 rows" in text
    assert "accuracy" in text


def predictions(done: Done) -> list[dict[str, str]]:
    assert done.code == 0, done.err
    return list(csv.DictReader(done.out.splitlines()))


def test_predictions_are_the_same_in_every_form(command: Command, run: Path, store: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.csv"  # the columns of the outputs are not needed
    new.write_text("stars,text\n1,a red thing\n2,a green thing\n", encoding="utf-8")
    shown = predictions(command("predict", run, new, "--store", store))
    assert [row.keys() for row in shown] == [shown[0].keys()] * 2
    for row in shown:
        shares = [float(row[f"colour_probabilities_{colour}"]) for colour in COLOURS]
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert row["colour_predictions"] == COLOURS[shares.index(max(shares))]
        assert row["sold_predictions"] in ("yes", "no")
        float(row["price_predictions"])

    for name in ("out.csv", "out.parquet"):
        file = tmp_path / name
        done = command("predict", run, new, "-o", file, "--store", store, "--json")
        assert done.code == 0, done.out
        assert (done.json["rows"], done.json["output"]) == (2, str(file))
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as lines:
        assert list(csv.DictReader(lines)) == shown
    table = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["colour_predictions"] for row in table] == [row["colour_predictions"] for row in shown]
    as_json = command("predict", run, new, "--store", store, "--json").json
    assert as_json["predictions"]["colour_predictions"] == [row["colour_predictions"] for row in shown]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), OSError(28, os.strerror(28))], ids=repr)
def test_predictions_are_written_whole_or_not_at_all(
    command: Command, run: Path, data: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str,
    stopped: BaseException,
) -> None:  # fmt: skip
    folder = tmp_path / "predictions"
    folder.mkdir()
    real = os.fsync

    def stop(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(folder):
            raise stopped
        real(descriptor)

    arguments = ("predict", run, data, "-o", folder / f"out{suffix}", "--store", store)
    assert command(*arguments).code == 0
    before = (folder / f"out{suffix}").read_bytes()
    monkeypatch.setattr(os, "fsync", stop)
    done = command(*arguments)
    assert done.code == (130 if isinstance(stopped, KeyboardInterrupt) else 2)
    assert (folder / f"out{suffix}").read_bytes() == before
    assert len(list(folder.iterdir())) == 1
    assert command("predict", run, data, "-o", folder / f"new{suffix}", "--store", store).code == done.code
    assert len(list(folder.iterdir())) == 1


def test_a_row_that_cannot_be_encoded_has_no_prediction(
    command: Command, run: Path, store: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.csv"
    new.write_bytes(b"stars,text\n1,a red thing\n2,na\xefve\n")
    done = command("predict", run, new, "--store", store)
    assert done.code == 5
    assert "data row 1 (counted from 0)" in done.err
    good, skipped = csv.DictReader(done.out.splitlines())
    assert good["colour_predictions"] in COLOURS
    assert set(skipped.values()) == {""}


def test_skipped_cells_are_named_by_file_column_and_row(
    command: Command, run: Path, data: Path, config: Path, store: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test.csv"
    write(test, rows(60, 5))
    test.write_bytes(test.read_bytes().replace(b'61",1,', b'61",\xe9,'))
    line = f"skipped: {test}, column 'stars', data row 1 (counted from 0): is not UTF-8; save the file as UTF-8\n"
    for arguments in (
        ("train", data, "-c", config, "--test", test, "--output", tmp_path / "another"),
        ("evaluate", run, test),
        ("predict", run, test),
    ):
        done = command(*arguments, "--store", store, "--quiet")
        assert (done.code, done.err) == (5, line)
        as_json = command(*arguments, "--store", store, "--json")
        assert (as_json.code, as_json.json["skipped"]) == (5, 1)


WRONG = {
    "no run": (("predict", "<tmp>/nowhere", "<data>"), 2, "no run"),
    "not a run": (("evaluate", "<tmp>/runs", "<data>"), 2, "not a run"),
    "wrong suffix": (("predict", "<run>", "<data>", "-o", "<tmp>/out.txt"), 2, ".parquet"),
    "no such folder": (("predict", "<run>", "<data>", "-o", "<tmp>/no/out.csv"), 2, "out.csv"),
    "config missing": (("train", "<data>", "-c", "<tmp>/no.yaml"), 2, "no.yaml"),
    "typo in an override": (
        ("train", "<data>", "-c", "<config>", "--set", "trainer.epoch=3"),
        2,
        "did you mean 'epochs'",
    ),
    "not a setting": (("train", "<data>", "-c", "<config>", "--set", "epochs"), 2, "epochs"),
    "output holds a config of one's own": (
        ("train", "<data>", "-c", "<config>", "--output", "<tmp>"),
        2,
        "is not empty and holds no run",
    ),
    "output is a file": (("train", "<data>", "-c", "<config>", "--output", "<data>"), 2, "things.csv"),
    "text in a number column": (("train", "<letters>", "-c", "<config>", "--output", "<tmp>/o"), 2, "stars"),
    "column missing": (("train", "<narrow>", "-c", "<config>", "--output", "<tmp>/o"), 2, "did you mean 'txt'"),
    "unknown class": (("evaluate", "<run>", "<strange>"), 2, "purple"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_sentence_and_an_exit_code(
    command: Command, data: Path, config: Path, run: Path, store: Path, tmp_path: Path, case: str
) -> None:
    places = {"<tmp>": tmp_path, "<data>": data, "<config>": config, "<run>": run}
    places["<letters>"] = write(tmp_path / "letters.csv", [*rows(0, 5), ["a red thing", "many", "red", "yes", 1]])
    places["<strange>"] = write(tmp_path / "strange.csv", [["a thing", 1, "purple", "yes", 1]])
    places["<narrow>"] = tmp_path / "narrow.csv"
    places["<narrow>"].write_text("txt,stars,colour,sold,price\na,1,red,yes,1\n", encoding="utf-8")
    arguments, code, word = WRONG[case]
    filled = list(arguments)
    for name, path in places.items():
        filled = [argument.replace(name, str(path)) for argument in filled]
    done = command(*filled, "--store", store, "--quiet")
    assert done.code == code, done.err
    assert word in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert done.out == ""


def test_faults_of_a_config_are_reported_together(command: Command, data: Path, config: Path, store: Path) -> None:
    text = CONFIG.replace("epochs: 3", "epoch: 3").replace("type: number}\noutput", "type: nmber}\noutput")
    config.write_text(text, encoding="utf-8")
    done = command("train", data, "-c", config, "--store", store, "--json")
    assert done.code == 2
    message = done.json["error"]["message"]
    assert "trainer.epoch" in message
    assert "did you mean 'number'" in message
    assert not store.exists()


def test_predictions_do_not_replace_the_data_they_are_of(
    command: Command, run: Path, data: Path, store: Path, tmp_path: Path
) -> None:
    before = data.read_bytes()
    (tmp_path / "link.csv").symlink_to(data)
    for output in (data, tmp_path / "link.csv"):
        done = command("predict", run, data, "-o", output, "--store", store)
        assert done.code == 2
        assert "is DATA itself" in done.err
    assert data.read_bytes() == before


def test_the_encoders_that_a_run_trained_are_told_with_their_rates(tmp_path: Path) -> None:
    summary: dict[str, Any] = {
        **{"run": str(tmp_path), "metrics": {}, "rows": {"train": 9}, "dropped": {}, "seconds": {"epochs": 1.0}},
        **{"references": {}, "manifests": {"train": []}, "encoded": 0, "hits": 0, "epochs": 2, "learning_rate": 0.001},
        "encoder_learning_rates": {"review": 2e-5, "title": 2e-4},
    }
    (tmp_path / "encoders" / "review").mkdir(parents=True)
    told = train_text(summary).splitlines()
    assert "2 epochs; learning rate 0.001 (encoder of review: 2e-05, title: 0.0002)" in told
    assert not any("found in the store" in line for line in told)  # through which nothing went
    place = tmp_path / "encoders" / "review"
    assert told[-1] == f"encoder of review: {place}; its vectors are stored by --encoder '{tmp_path}#review'"


@pytest.fixture
def interrupted(command: Command, data: Path, config: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains into a directory and is interrupted before anything of it is saved."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def call(place: Path) -> Done:
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "append_metrics", stop)
            return command("train", data, "-c", config, "--store", store, "--output", place)

    return call


def test_an_interrupt_says_how_the_run_goes_on(
    command: Command, interrupted: Train, store: Path, tmp_path: Path
) -> None:
    place = tmp_path / "stopped"
    done = interrupted(place)
    assert done.code == 130
    assert f"the run goes on with: cachestore train --resume {place}" in done.err
    assert command("train", "--resume", place, "--store", store).code == 0
    done = interrupted(place)
    assert done.code == 130
    assert "--resume" not in done.err  # the finished run stays, and nothing of the new one was saved


def test_an_interrupt_does_not_name_a_run_that_was_stopped_there_before(interrupted: Train, tmp_path: Path) -> None:
    place = tmp_path / "stopped"
    assert "--resume" in interrupted(place).err
    assert "the run goes on with" not in interrupted(place).err
