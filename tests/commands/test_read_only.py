"""Commands on a store that the user may only read: what it holds is served, what it lacks is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cachestore
from cachestore.errors import StoreNotWritable
from tests.commands.conftest import Command

REMARK = "is read-only: nothing new can be encoded"
CONFIG = """\
input_features:
  - {name: text, type: text, encoder: {type: hashing, dim: 32}}
output_features:
  - {name: stars, type: number}
preprocessing: {split: {type: random, probabilities: [0.6, 0.4, 0.0]}}
trainer: {epochs: 2, validation_metric: loss}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture
def run(command: Command, reviews: Path, config: Path, store: Path, tmp_path: Path) -> Path:
    """A finished run, whose vectors are in the store."""
    done = command("train", reviews, "-c", config, "--output", tmp_path / "run", "--store", store)
    assert done.code == 0, done.err
    return tmp_path / "run"


def only_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Callable[..., cachestore.Store] = cachestore.open_store

    def open_store(path: Any = None, mode: Any = "w") -> cachestore.Store:
        if mode == "w":
            raise StoreNotWritable("Cannot write the lock.")
        return opened(path, mode)

    monkeypatch.setattr(cachestore, "open_store", open_store)


def lines(command: str, run: Path, data: Path, config: Path) -> list[object]:
    return {
        "build": ["build", data, "-c", config],
        "train": ["train", data, "-c", config, "--output", run.parent / "another"],
        "predict": ["predict", run, data],
        "evaluate": ["evaluate", run, data],
    }[command]


@pytest.mark.parametrize("name", ["build", "train", "predict", "evaluate"])
def test_what_the_store_holds_is_served_and_what_it_lacks_refused(
    command: Command, run: Path, reviews: Path, config: Path, store: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    only_reading(monkeypatch)
    done = command(*lines(name, run, reviews, config), "--store", store)
    assert done.code == 0, done.err
    assert done.err.count(REMARK) == 1
    assert str(store) in done.err
    assert REMARK not in command(*lines(name, run, reviews, config), "--store", store, "--quiet").err

    files = {path for path in store.rglob("*") if path.is_file()}
    head, *known = reviews.read_text(encoding="utf-8").splitlines(keepends=True)
    reviews.write_text("".join([head, *known[::-1], *known]), encoding="utf-8")  # another file, the same texts
    done = command(*lines(name, run, reviews, config), "--store", store)
    assert done.code == 0, done.err
    assert {path for path in store.rglob("*") if path.is_file()} == files

    reviews.write_text("text,stars\nnew,1\nmore,2\nand more,3\nthe last,4\n", encoding="utf-8")
    lacking = command(*lines(name, run, reviews, config), "--store", store, "--json")
    assert lacking.code == 3
    assert lacking.json["error"]["type"] == "StoreNotWritable"


def test_where_there_is_no_store_the_first_error_counts(
    command: Command, reviews: Path, config: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_reading(monkeypatch)
    done = command("build", reviews, "-c", config, "--store", store)
    assert (done.code, done.err) == (3, "error: Cannot write the lock.\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_permissions_make_a_store_read_only(command: Command, run: Path, reviews: Path, store: Path) -> None:
    places = [store, *store.rglob("*")]
    for path in places:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        done = command("evaluate", run, reviews, "--store", store)
    finally:
        for path in places:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.code == 0, done.err
    assert REMARK in done.err
