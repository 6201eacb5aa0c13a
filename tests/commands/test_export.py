"""`cachestore export`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")


@pytest.fixture
def built(command: Command, store: Path, reviews: Path) -> str:
    done = command("build", reviews, *HASHING, "--store", store, "--json")
    return str(done.json["manifest"])


def test_vectors_are_written_and_rows_without_one_are_told(
    command: Command, store: Path, built: str, tmp_path: Path
) -> None:
    place = tmp_path / "out.npy"
    done = command("export", "reviews", "-o", place, "--store", store, "--json")
    assert done.code == 0, done.out
    assert done.json == {
        "output": str(place),
        "manifest": built,
        "rows": 5,
        "vectors": {"text": 4},
        "carried": [],
        "undecodable": 0,
        "bytes": place.stat().st_size,
    }
    assert (
        done.err == "1 of 5 rows have no vector of 'text': they are zeros there; a .safetensors file tells them apart\n"
    )
    assert np.load(place).shape == (5, 32)
    text = command("export", "reviews", "-o", place, "--store", store, "--quiet")
    assert text.out.startswith(f"5 rows (text) written to {place}, ")
    assert text.err == ""


def test_a_parquet_file_carries_what_is_asked_for(command: Command, store: Path, built: str, tmp_path: Path) -> None:
    place = tmp_path / "out.parquet"
    options = ("--with", "stars", "--with", "helpful", "--dtype", "float16")
    done = command("export", built, "-o", place, *options, "--store", store, "--json")
    assert done.code == 0, done.out
    found = parquet.read_table(place)
    assert found.column_names == ["stars", "helpful", "text_vector", "event_timestamp"]
    assert found.column("stars").to_pylist() == ["5", "2", "4", "3", "1"]


WRONG = {
    "unknown format": (("reviews", "-o", "out.csv"), 2, ".safetensors"),
    "unknown name": (("reviwes", "-o", "out.npy"), 3, "did you mean 'reviews'"),
    "unknown column": (("reviews", "-o", "out.npy", "--column", "txet"), 2, "did you mean 'text'"),
    "unknown type": (("reviews", "-o", "out.npy", "--dtype", "bfloat16"), 2, "--dtype"),
    "no output": (("reviews",), 2, "output"),
    "changed source": (("reviews", "-o", "out.parquet", "--with", "stars"), 2, "has changed since reviews@1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_sentence_and_writes_nothing(
    command: Command, store: Path, reviews: Path, built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    arguments, code, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    with reviews.open("a", encoding="utf-8") as file:
        file.write("more,1,no\n")
    before = sorted(tmp_path.iterdir())
    done = command("export", *arguments, "--store", store)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert done.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_who_may_write_gets_a_lost_index_filled_and_who_may_not_is_told_of_repair(
    command: Command, store: Path, built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported() -> int:
        done = command("export", "reviews", "-o", tmp_path / "out.npy", "--store", store, "--json")
        return int(done.json["vectors"]["text"]) if done.code == 0 else -done.code

    shutil.rmtree(store / "index")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        refused = command("export", "reviews", "-o", tmp_path / "out.npy", "--store", store)
        assert refused.code == 4
        assert "Run `cachestore repair` as a user who may write" in refused.err
        assert not (store / "index").exists()
    assert exported() == 4
    assert command("verify", "--store", store).code == 0
    shutil.rmtree(store / "index")
    assert command("tag", "reviews", "v1", "--store", store).code == 0  # makes an index, perhaps, and fills none
    (store / "index").mkdir(exist_ok=True)
    assert exported() == 4
    os.truncate(store / "index" / "data.mdb", 5000)
    with pytest.warns(UserWarning, match="was damaged"):
        assert exported() == 4
