"""`cachestore gc`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import cachestore
from cachestore import locks
from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")


@pytest.fixture
def built(command: Command, store: Path, reviews: Path) -> Path:
    """A store with two versions of a name, forty days old."""
    assert command("build", reviews, *HASHING, "--name", "shop", "--store", store).code == 0
    with reviews.open("a", encoding="utf-8") as file:
        file.write("one more,5,yes\n")
    assert command("build", reviews, *HASHING, "--name", "shop", "--store", store).code == 0
    then = time.time() - 40 * 86_400
    for path in store.rglob("*"):
        if path.suffix in (".arrow", ".json"):
            os.utime(path, (then, then))
    return store


def test_gc_of_a_tidy_store_has_nothing_to_do(command: Command, built: Path) -> None:
    done = command("gc", "--store", built)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "nothing to do"
    assert "0 B freed" in done.out


def test_a_dry_run_tells_the_plan_and_changes_nothing(command: Command, built: Path) -> None:
    before = sorted(built.rglob("*"))
    done = command("gc", "--keep-last", 1, "--store", built, "--dry-run", "--json")
    assert done.code == 0
    assert done.json["dry_run"] is True
    plan = done.json["plan"]
    assert plan["versions"] == ["shop@1"]
    assert (len(plan["manifests"]), len(plan["chunks"]), plan["unreferenced_shards"]) == (1, 1, [])
    assert plan["bytes_to_trash"] > 0
    assert sorted(built.rglob("*")) == before
    text = command("gc", "--keep-last", 1, "--store", built, "--dry-run").out
    for word in ("manifests", "chunks", "to the trash", "shop@1", "nothing was changed"):
        assert word in text


def test_the_plan_comes_first_then_what_was_done(command: Command, built: Path) -> None:
    done = command("gc", "--keep-last", 1, "--store", built)
    assert done.code == 0, done.err
    assert done.out.index("manifests") < done.out.index("moved to the trash") < done.out.index("--grace 0 at once")
    emptied = command("gc", "--grace", 0, "--store", built, "--json").json
    assert emptied["done"]["bytes_freed"] > 0
    assert emptied["done"]["bytes_in_trash"] == 0
    assert emptied["done"]["trash_deleted_from"] is None
    gone = command("build", "--help")
    assert gone.code == 0


def test_unreferenced_vectors_go_by_age_and_by_size(command: Command, built: Path) -> None:
    (built / "names" / "shop.jsonl").unlink()
    kept = command("gc", "--unreferenced-older-than", "41d", "--store", built, "--json").json["plan"]
    assert kept["unreferenced_shards"] == []
    gone = command("gc", "--unreferenced-older-than", "30d", "--store", built, "--json").json
    assert len(gone["plan"]["unreferenced_shards"]) == 2
    assert gone["done"]["bytes_trashed"] == gone["plan"]["bytes_to_trash"]
    assert command("gc", "--max-bytes", "1.5 kB", "--store", built, "--json").json["plan"]["shards"] == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--unreferenced-older-than", "30"),
        ("--unreferenced-older-than", "a month"),
        ("--grace", "-1d"),
        ("--max-bytes", "50XB"),
        ("--max-bytes", "lots"),
        ("--keep-last", "0"),
    ],
)
def test_what_is_no_age_or_size_is_refused(command: Command, built: Path, option: str, value: str) -> None:
    done = command("gc", f"{option}={value}", "--store", built)
    assert done.code == 2
    assert option in done.err or "last 1 or more" in done.err


def test_sizes_and_ages_have_units() -> None:
    from cli.gc import _age, _size

    sizes = {"50GB": 50 * 10**9, "50gib": 50 * 2**30, "500 MB": 5 * 10**8, "1k": 1000, "7": 7, "1.5kB": 1500}
    assert {text: _size("", text) for text in sizes} == sizes
    ages = {"30d": 30 * 86_400, "12h": 43_200, "45m": 2700, "2w": 14 * 86_400, "0": 0, "10s": 10}
    assert {text: _age("", text) for text in ages} == ages


def test_the_help_and_the_plan_say_what_repack_needs_to_drop_rows(command: Command, built: Path) -> None:
    shown = command("gc", "--help").out
    assert "cachestore gc --repack --unreferenced-older-than 30d" in shown
    assert "only dropped together with" in " ".join(shown.replace("│", " ").split())
    done = command("gc", "--repack", "--store", built)
    assert "note: Without --unreferenced-older-than or --max-bytes, --repack keeps" in done.out


def test_gc_makes_no_store(command: Command, store: Path) -> None:
    assert command("gc", "--store", store).code == 3
    assert command("gc", "--store", store, "--dry-run").code == 3
    assert not store.exists()


def test_gc_waits_for_a_builder_and_then_is_refused(command: Command, built: Path) -> None:
    with locks.held(built, "builders", exclusive=False, timeout=1):
        done = command("gc", "--store", built, "--wait", 0, "--json")
    assert done.code == 3
    assert done.json["error"]["type"] == "StoreLocked"


def test_damage_of_what_a_name_needs_stops_it_with_exit_code_4(command: Command, built: Path) -> None:
    with cachestore.open_store(built, mode="r") as opened:
        path = next(built.rglob(f"{opened.manifest('shop').id}.json"))
    path.unlink()
    done = command("gc", "--unreferenced-older-than", 0, "--store", built)
    assert done.code == 4
    assert "shop@2" in done.err
    assert json.loads(command("gc", "--store", built, "--json").out)["done"]["bytes_freed"] == 0


def test_a_run_that_was_moved_is_told_of_before_its_pin_goes_and_keeps_it_once_used(
    command: Command, store: Path, reviews: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "input_features: [{name: text, type: text, encoder: {type: hashing, dim: 32}}]\n"
        "output_features: [{name: stars, type: number}]\ntrainer: {epochs: 1}\n"
        "preprocessing: {split: {type: random, probabilities: [0.6, 0.4, 0.0]}}\n"
    )
    done = command("train", reviews, "-c", config, "--output", tmp_path / "run", "--store", store)
    assert done.code == 0, done.err
    (tmp_path / "run").rename(tmp_path / "moved")
    plan = command("gc", "--drop-missing-runs", "--dry-run", "--store", store)
    assert f"run that is no longer at {tmp_path / 'run'}\n" in plan.out
    assert "only moved keeps its pin once it is used: cachestore predict" in plan.out
    assert str(tmp_path / "moved") in command("predict", tmp_path / "moved", reviews, "--store", store).err
    assert command("gc", "--drop-missing-runs", "--dry-run", "--store", store, "--json").json["plan"]["pins"] == []
