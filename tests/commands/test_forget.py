"""`cachestore forget`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

import cachestore
from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")


@pytest.fixture
def built(command: Command, store: Path, reviews: Path) -> Path:
    """A store with the reviews under the name shop."""
    assert command("build", reviews, *HASHING, "--name", "shop", "--store", store).code == 0
    return store


def rows_left(store: Path) -> list[bool]:
    with cachestore.open_store(store, mode="r") as opened:
        return opened.vectors("shop", "text")[1].tolist()


def test_a_text_is_forgotten(command: Command, built: Path, reviews: Path) -> None:
    done = command("forget", "--text", "warm and soft", "--store", built)
    assert done.code == 0, done.err
    for word in ("1 vectors in 1 shards", "version: shop@1", str(reviews), "audit.jsonl", "encodes them again"):
        assert word in done.out
    assert rows_left(built) == [False, True, False, False, True]
    again = command("forget", "--text", "warm and soft", "--store", built, "--json")
    assert (again.code, again.json["done"]["vectors"]) == (0, 0)


def test_files_and_stdin_are_forgotten_byte_by_byte(
    command: Command, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"too small, sent back\n")
    assert command("forget", "--file", text, "--store", built, "--json").json["done"]["vectors"] == 0
    text.write_bytes(b"too small, sent back")
    assert command("forget", "--file", text, "--store", built, "--json").json["done"]["vectors"] == 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert command("forget", "--file", "-", "--store", built, "--json").json["done"]["vectors"] == 1  # "" is a text
    assert rows_left(built) == [True, False, True, False, False]


def test_rows_are_forgotten(command: Command, built: Path) -> None:
    done = command("forget", "--rows", "shop@1", "1,3-4", "--store", built, "--json")
    assert done.code == 0, done.err
    assert (done.json["plan"]["texts"], done.json["done"]["vectors"]) == (2, 2)
    assert "1 of the rows" in done.json["plan"]["notes"][0]
    assert rows_left(built) == [True, False, True, False, False]


def test_a_dry_run_changes_nothing(command: Command, built: Path) -> None:
    before = sorted(built.rglob("*"))
    done = command("forget", "--rows", "shop", "0", "--store", built, "--dry-run", "--json")
    assert (done.code, done.json["dry_run"], done.json["plan"]["versions"]) == (0, True, ["shop@1"])
    assert sorted(built.rglob("*")) == before
    assert "nothing was changed" in command("forget", "--text", "x", "--store", built, "--dry-run").out


@pytest.mark.parametrize("rows", ["", "a", "3-1", "-1", "1,,2", "0-99999999999", "9"])
def test_rows_that_are_none_are_refused(command: Command, built: Path, rows: str) -> None:
    done = command("forget", "--rows", "shop", rows, "--store", built)
    assert done.code == 2, done.out
    assert "row" in done.err


def test_it_says_what_is_missing(command: Command, built: Path, tmp_path: Path) -> None:
    assert command("forget", "--store", built).code == 2
    assert command("forget", "--file", tmp_path / "absent", "--store", built).code == 2
    assert command("forget", "--rows", "shup", "1", "--store", built).code == 3
    assert command("forget", "--text", "x", "--store", tmp_path / "absent").code == 3
    assert not (tmp_path / "absent").exists()


def test_readers_are_named_as_the_reason(command: Command, built: Path) -> None:
    with cachestore.open_store(built, mode="r") as reader:
        reader.vectors("shop", "text")
        done = command("forget", "--text", "warm and soft", "--store", built, "--wait", 0)
    assert done.code == 3
    assert "--wait" in done.err
    assert rows_left(built) == [True, True, True, False, True]


def test_a_file_that_never_ends_is_not_read_to_its_end(command: Command, store: Path, reviews: Path) -> None:
    command("build", reviews, "--column", "text", "--encoder", "hashing", "--store", store)
    done = command("forget", "--file", "/dev/zero", "--store", store)
    assert done.code == 2
    assert "/dev/zero is larger than 16 MiB" in done.err
