"""`cachestore import`, and what build, train and predict make of imported vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.commands.conftest import Command

SPEC = "model: api-1\ndim: 4\ndtype: float32\n"
CONFIG = """\
input_features:
  - {name: text, type: text, encoder: {type: imported, spec: spec.yaml}}
output_features:
  - {name: label, type: category}
trainer: {epochs: 2, batch_size: 8, learning_rate: 0.05}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC, encoding="utf-8")
    texts = [f"text {row}" for row in range(40)]
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    table = {"text": texts, "vector": pa.array(vectors.tolist(), pa.list_(pa.float32()))}
    parquet.write_table(pa.table(table), tmp_path / "vectors.parquet")
    np.save(tmp_path / "vectors.npy", vectors)
    lines = [f"{text},{('yes', 'no')[row % 2]}" for row, text in enumerate(texts)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")


def test_a_table_is_imported(command: Command, store: Path) -> None:
    done = command("import", "vectors.parquet", "--spec", "spec.yaml", "--name", "api", "--store", store, "--json")
    assert done.code == 0, done.out
    assert (done.json["name"], done.json["rows"], done.json["imported"], done.json["hits"]) == ("api", 40, 40, 0)
    again = command("import", "vectors.npy", "--spec", "spec.yaml", "--data", "data.csv", "--store", store)
    assert again.code == 0, again.err
    assert "data: 40 rows" in again.out
    assert "0 vectors imported, 40 cells found in the store" in again.out
    listed = command("ls", "--store", store).out
    assert "imported api-1 4→float32" in listed


def test_training_and_prediction_use_imported_vectors(command: Command, store: Path, tmp_path: Path) -> None:
    refused = command("train", "data.csv", "-c", "config.yaml", "-o", "run", "--store", store)
    assert refused.code == 2
    assert "40 texts have no imported vector under this spec (api-1); the first is 'text 0'" in refused.err
    assert command("import", "vectors.parquet", "--spec", "spec.yaml", "--store", store).code == 0
    trained = command("train", "data.csv", "-c", "config.yaml", "-o", "run", "--store", store, "--json")
    assert trained.code == 0, trained.out
    assert (trained.json["encoded"], trained.json["hits"]) == (0, 40)

    (tmp_path / "spec.yaml").unlink()  # the run holds the words, not the path
    predicted = command("predict", "run", "data.csv", "-o", "out.csv", "--store", store)
    assert predicted.code == 0, predicted.err
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").count("\n") == 41
    (tmp_path / "new.csv").write_text("text\ntext 1\nunknown\n", encoding="utf-8")
    unknown = command("predict", "run", "new.csv", "-o", "out.csv", "--store", store)
    assert (unknown.code, "the first is 'unknown'" in unknown.err) == (2, True), unknown.err


def test_what_is_exported_can_be_imported_elsewhere(command: Command, store: Path, tmp_path: Path) -> None:
    assert command("import", "vectors.npy", "--spec", "spec.yaml", "--data", "data.csv", "--store", store).code == 0
    assert command("export", "data", "-o", "out.parquet", "--with", "text", "--store", store).code == 0
    moved = ("import", "out.parquet", "--spec", "spec.yaml", "--vector-column", "text_vector", "--store", "elsewhere")
    done = command(*moved, "--name", "data", "--json")
    assert done.code == 0, done.out
    first = command("ls", "--store", store, "--json").json["names"][0]
    assert done.json["manifest"] == first["manifest"]


def test_a_text_that_is_not_utf8_is_skipped_and_named(command: Command, store: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes(b"text\n" + b"na\xefve\n" + b"".join(b"text %d\n" % row for row in range(39)))
    done = command("import", "vectors.npy", "--spec", "spec.yaml", "--data", "latin.csv", "--store", store, "--json")
    assert done.code == 5
    assert "latin.csv, column 'text', data row 0" in done.err
    assert (done.json["imported"], done.json["skipped"]) == (39, 1)


WRONG = {
    "no spec": (("vectors.parquet",), "--spec"),
    "no such spec": (("vectors.parquet", "--spec", "none.yaml"), "none.yaml"),
    "broken spec": (("vectors.parquet", "--spec", "broken.yaml"), "broken.yaml, line 2"),
    "spec without dim": (("vectors.parquet", "--spec", "bare.yaml"), "dim"),
    "other dim": (("vectors.parquet", "--spec", "five.yaml"), "has 4 numbers; the spec says dim: 5"),
    "array alone": (("vectors.npy", "--spec", "spec.yaml"), "--data"),
    "array with a table's options": (("vectors.npy", "--spec", "spec.yaml", "--text-column", "text"), "--column NAME"),
    "table with an array's option": (("vectors.parquet", "--spec", "spec.yaml", "--column", "text"), "--text-column"),
    "table with data": (("vectors.parquet", "--spec", "spec.yaml", "--data", "data.csv"), "leave --data out"),
    "unknown format": (("data.csv", "--spec", "spec.yaml"), ".parquet"),
    "unknown column": (("vectors.parquet", "--spec", "spec.yaml", "--text-column", "txet"), "did you mean 'text'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_sentence_and_an_exit_code(command: Command, store: Path, tmp_path: Path, case: str) -> None:
    (tmp_path / "broken.yaml").write_text("model: api\n  dim: {", encoding="utf-8")
    (tmp_path / "bare.yaml").write_text("model: api\n", encoding="utf-8")
    (tmp_path / "five.yaml").write_text("model: api\ndim: 5\n", encoding="utf-8")
    arguments, words = WRONG[case]
    done = command("import", *arguments, "--store", store)
    assert (done.code, done.out) == (2, ""), done.err
    assert words in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
