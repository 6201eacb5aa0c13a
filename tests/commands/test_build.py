"""`cachestore build`: what it reports, what it refuses, and what it leaves alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import cachestore
from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")
KEYS = {
    "name",
    "manifest",
    "rows",
    "encoded",
    "hits",
    "duplicates",
    "missing",
    "skipped",
    "bytes_written",
    "seconds",
}


def test_a_build_counts_its_cells(command: Command, store: Path, reviews: Path) -> None:
    done = command("build", reviews, *HASHING, "--store", store, "--json")
    assert done.code == 0, done.err
    assert done.json.keys() == KEYS
    assert done.json["name"] == "reviews"
    counts = {key: done.json[key] for key in ("rows", "encoded", "hits", "duplicates", "missing", "skipped")}
    assert counts == {"rows": 5, "encoded": 3, "hits": 0, "duplicates": 1, "missing": 1, "skipped": 0}
    assert done.json["bytes_written"] > 0
    assert done.err == ""


def test_a_second_build_encodes_nothing(command: Command, store: Path, reviews: Path) -> None:
    first = command("build", reviews, *HASHING, "--store", store, "--json").json
    again = command("build", reviews, *HASHING, "--store", store, "--json").json
    assert again["manifest"] == first["manifest"]
    assert (again["encoded"], again["hits"], again["bytes_written"]) == (0, 4, 0)


def test_columns_come_from_a_config(command: Command, store: Path, reviews: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "input_features:\n"
        "  - {name: words, column: text, type: text, encoder: {type: hashing, dim: 32}}\n"
        "  - {name: stars, type: number}\n"
        "output_features:\n"
        "  - {name: helpful, type: binary}\n",
        encoding="utf-8",
    )
    done = command("build", reviews, "-c", config, "--name", "from-config", "--store", store, "--json")
    assert done.code == 0, done.out
    assert done.json["name"] == "from-config"
    same = command("build", reviews, *HASHING, "--store", store, "--json").json
    assert same["encoded"] == 0


def test_encoders_that_run_in_training_are_not_built(
    command: Command, store: Path, reviews: Path, tmp_path: Path
) -> None:
    trained = "  - {name: words, column: text, type: text, encoder: {type: minilm, trainable: true}}\n"
    frozen = "  - {name: hashed, column: text, type: text, encoder: {type: hashing, dim: 32}}\n"
    outputs = "output_features:\n  - {name: helpful, type: binary}\n"
    config = tmp_path / "config.yaml"
    config.write_text(f"input_features:\n{trained}{frozen}{outputs}", encoding="utf-8")
    done = command("build", reviews, "-c", config, "--store", store, "--json")
    assert (done.code, done.json["encoded"]) == (0, 3), done.err
    config.write_text(f"input_features:\n{trained}{outputs}", encoding="utf-8")
    done = command("build", reviews, "-c", config, "--store", store)
    assert done.code == 2
    assert done.err.strip() == (
        "error: All encoders of the config run in training, so there is nothing to build. Train with it at once."
    )


def test_a_column_may_have_several_encoders(command: Command, store: Path, reviews: Path) -> None:
    smaller = ("--column", "text", "--encoder", "{type: hashing, dim: 64}")
    planned = command("build", reviews, *HASHING, *smaller, "--store", store, "--dry-run", "--json").json
    built = command("build", reviews, *HASHING, *smaller, "--store", store, "--json").json
    one = command("build", reviews, *HASHING, "--store", store, "--json").json
    assert planned["to_encode"] == built["encoded"] == 2 * 3
    assert one["encoded"] == 0, "the vectors of one are those of both"
    assert command("verify", "--reencode", "5", "--store", store, "--json").json["damage"] == 0


def test_a_dry_run_tells_and_writes_nothing(command: Command, store: Path, reviews: Path) -> None:
    done = command("build", reviews, *HASHING, "--store", store, "--dry-run", "--json")
    assert done.code == 0, done.out
    assert (done.json["rows"], done.json["to_encode"], done.json["hits"]) == (5, 3, 0)
    assert done.json["bytes"] > 0
    assert not store.exists()

    command("build", reviews, *HASHING, "--store", store)
    before = sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*") if "lock" not in path.name)
    warm = command("build", reviews, *HASHING, "--store", store, "--dry-run", "--json").json
    assert (warm["to_encode"], warm["hits"]) == (0, 4)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*") if "lock" not in path.name)


def test_text_output_and_quiet(command: Command, store: Path, reviews: Path) -> None:
    done = command("build", reviews, *HASHING, "--store", store, "--quiet")
    assert done.code == 0
    assert "reviews: 5 rows" in done.out
    assert "3 texts encoded" in done.out
    assert done.err == ""


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_an_undecodable_row_is_skipped_and_named(command: Command, store: Path, tmp_path: Path, as_json: bool) -> None:
    data = tmp_path / "latin.csv"
    data.write_bytes(b"text\nfine\nna\xefve\nalso fine\n")
    done = command("build", data, *HASHING, "--store", store, *(["--json"] if as_json else []))
    assert done.code == 5
    assert "data row 1 (counted from 0)" in done.err
    assert "'text'" in done.err
    if as_json:
        assert (done.json["rows"], done.json["skipped"], done.json["encoded"]) == (3, 1, 2)
    else:
        assert "1 skipped" in done.out


WRONG = {
    "missing file": (("build", "nothing.csv", *HASHING), 2, "nothing.csv"),
    "missing column": (("build", "<reviews>", "--column", "txet", "--encoder", "hashing"), 2, "did you mean 'text'"),
    "empty file": (("build", "<empty>", *HASHING), 2, "empty"),
    "ragged file": (("build", "<ragged>", *HASHING), 2, "line 3"),
    "unknown suffix": (("build", "<foreign>", *HASHING), 2, ".xlsx"),
    "no encoder": (("build", "<reviews>", "--column", "text"), 2, "--encoder"),
    "no column": (("build", "<reviews>"), 2, "--column"),
    "both ways": (("build", "<reviews>", *HASHING, "-c", "config.yaml"), 2, "not both"),
    "unknown encoder": (("build", "<reviews>", "--column", "text", "--encoder", "minilmm"), 2, "did you mean 'minilm'"),
    "unknown setting": (("build", "<reviews>", "--column", "text", "--encoder", "{type: hashing, dmi: 3}"), 2, "dim"),
    "broken settings": (("build", "<reviews>", "--column", "text", "--encoder", "{type: "), 2, "--encoder"),
    "missing config": (("build", "<reviews>", "-c", "nowhere.yaml"), 2, "nowhere.yaml"),
    "bad name": (("build", "<reviews>", *HASHING, "--name", "../up"), 2, "../up"),
    "unknown option": (("build", "<reviews>", "--colum", "text"), 2, "--colum"),
    "no data": (("build",), 2, "DATA"),
    "unknown command": (("biuld",), 2, "build"),
    "unwritable store": (("build", "<reviews>", *HASHING, "--store", "<reviews>/below"), 3, "reviews.csv"),
    "not a store": (("build", "<reviews>", *HASHING, "--store", "<folder>"), 3, "not a store"),
    "newer store": (("build", "<reviews>", *HASHING, "--store", "<newer>"), 3, "format 99"),
}


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_sentence_and_an_exit_code(
    command: Command, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, as_json: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {name: tmp_path / name for name in ("empty.csv", "ragged.csv", "foreign.xlsx", "folder", "newer")}
    places["empty.csv"].touch()
    places["ragged.csv"].write_text("text,stars\nfine,1\nnot,so,fine\n", encoding="utf-8")
    places["foreign.xlsx"].write_bytes(b"PK\x03\x04")
    places["folder"].mkdir()
    (places["folder"] / "letter.txt").touch()
    cachestore.open_store(places["newer"]).close()
    header = places["newer"] / "store.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 99}), encoding="utf-8")
    names = {f"<{path.stem}>": str(path) for path in (reviews, *places.values())}

    arguments, code, word = WRONG[case]
    filled = [re.sub(r"<\w+>", lambda found: names[found[0]], argument) for argument in arguments]
    done = command(*filled, *(["--json"] if as_json else []))
    assert done.code == code, done.err or done.out
    message = done.json["error"]["message"] if as_json else done.err
    assert word in message
    assert "Traceback" not in done.err
    if as_json:
        assert done.json.keys() == {"error"}
        assert done.json["error"]["exit_code"] == code
        assert done.err == ""
    else:
        assert done.out == ""
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1
