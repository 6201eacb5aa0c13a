"""`cachestore ls`."""

from __future__ import annotations

import shutil
from pathlib import Path

import cachestore
from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")


def test_ls_lists_names_versions_encoders_rows_and_bytes(command: Command, store: Path, reviews: Path) -> None:
    built = command("build", reviews, *HASHING, "--name", "shop", "--store", store, "--json").json
    with reviews.open("a", encoding="utf-8") as file:
        file.write("one more,5,yes\n")
    appended = command("build", reviews, *HASHING, "--name", "shop", "--store", store, "--json").json
    assert appended["manifest"] != built["manifest"]

    done = command("ls", "--store", store, "--json")
    assert done.code == 0
    assert done.json["store"] == str(store)
    (entry,) = done.json["names"]
    assert entry.keys() == {"name", "versions", "manifest", "rows", "columns", "bytes", "created"}
    assert (entry["name"], entry["versions"], entry["rows"]) == ("shop", 2, 6)
    assert entry["manifest"] == appended["manifest"]
    assert entry["bytes"] > 0
    assert entry["columns"][0]["column"] == "text"
    assert "hashing" in entry["columns"][0]["encoder"]

    text = command("ls", "--store", store).out
    for word in ("shop", "6", "hashing", appended["manifest"][:12]):
        assert word in text


def test_ls_of_an_empty_store_says_what_to_do(command: Command, store: Path) -> None:
    cachestore.open_store(store).close()
    done = command("ls", "--store", store)
    assert (done.code, "cachestore build" in done.out) == (0, True), done.err


def test_ls_makes_no_store(command: Command, store: Path) -> None:
    done = command("ls", "--store", store)
    assert done.code == 3
    assert str(store) in done.err
    assert not store.exists()


CONFIG = """\
input_features:
  - {name: text, type: text, encoder: {type: hashing, dim: 32}}
output_features:
  - {name: stars, type: number}
preprocessing: {split: {type: random, probabilities: [0.6, 0.4, 0.0]}}
trainer: {epochs: 1}
"""


def test_ls_shows_which_runs_are_on_which_versions_and_the_other_way(
    command: Command, store: Path, reviews: Path, tmp_path: Path
) -> None:
    cachestore.open_store(store).close()
    assert "No run has been trained" in command("ls", "--runs", "--store", store).out
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    places = [tmp_path / "first", tmp_path / "second", tmp_path / "third"]
    for place in places:
        done = command("train", reviews, "-c", config, "--output", place, "--store", store, "--json")
        assert done.code == 0, done.err
        assert done.json["references"] == {"train": ["reviews@2" if place == places[2] else "reviews@1"]}
        if place == places[1]:
            with reviews.open("a", encoding="utf-8") as file:
                file.write("one more,5,yes\n")
    shutil.rmtree(places[0])

    done = command("ls", "--runs", "--store", store, "--json")
    assert done.code == 0
    found = {run["path"]: (run["versions"], run["there"]) for run in done.json["runs"]}
    assert found == {
        str(places[0]): (["reviews@1"], False),
        str(places[1]): (["reviews@1"], True),
        str(places[2]): (["reviews@2"], True),
    }
    (name,) = done.json["names"]
    assert {version: sorted(paths) for version, paths in name["runs"].items()} == {
        "reviews@1": sorted(map(str, places[:2])),
        "reviews@2": [str(places[2])],
    }
    text = command("ls", "--runs", "--store", store).out
    assert [line.split()[-1] for line in text.splitlines() if str(places[0]) in line] == ["gone", str(places[0])]


def test_a_store_without_its_index_is_listed_and_not_written(command: Command, store: Path, reviews: Path) -> None:
    """As a restored backup is, which need not hold the index."""
    command("build", reviews, *HASHING, "--name", "shop", "--store", store)
    command("tag", "shop", "kept", "--store", store)
    lines = (["ls"], ["ls", "--runs"], ["log", "shop"], ["tag"], ["diff", "shop@kept", "shop"])
    before = [command(*line, "--store", store, "--json").json for line in lines]
    shutil.rmtree(store / "index")
    for line, said in zip(lines, before, strict=True):
        done = command(*line, "--store", store, "--json")
        assert (done.code, done.json) == (0, said), done.err
    assert not (store / "index").exists()
