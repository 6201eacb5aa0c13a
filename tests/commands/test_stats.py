"""`cachestore stats`."""

from __future__ import annotations

from pathlib import Path

import cachestore
from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")


def test_stats_tell_what_a_store_holds(command: Command, store: Path, reviews: Path) -> None:
    command("build", reviews, *HASHING, "--store", store)
    done = command("stats", "--store", store, "--json")
    assert done.code == 0, done.out
    found = done.json
    assert (found["store"], found["vectors"], found["names"], found["versions"]) == (str(store), 3, 1, 1)
    (encoder,) = found["encoders"]
    assert (encoder["encoder"], encoder["vectors"], encoder["names"]) == ("hashing 32", 3, ["reviews"])
    assert encoder["quality"]["rows"] == 3
    assert encoder["quality"]["zeros"] == 1  # of the empty text
    (build,) = found["builds"]
    assert (build["name"], build["hits"], build["encoded"], build["repeats"]) == ("reviews", 0, 3, 1)
    assert found["bytes"] == sum(found["disk"].values())

    text = command("stats", "--store", store, "--sample", "2").out
    for words in ("3 vectors in 1 shard", "hashing 32", "used by reviews", "of 2 vectors: norms", "reviews@1"):
        assert words in text


def test_stats_of_an_empty_and_of_no_store(command: Command, store: Path, tmp_path: Path) -> None:
    cachestore.open_store(store).close()
    done = command("stats", "--store", store)
    assert done.code == 0
    assert "0 vectors" in done.out
    missing = command("stats", "--store", tmp_path / "nowhere")
    assert (missing.code, str(tmp_path / "nowhere") in missing.err) == (3, True)
    assert command("stats", "--store", store, "--sample", "-1").code == 2
