"""`cachestore repair`."""

from __future__ import annotations

import pytest


@pytest.fixture
def built(command, store, reviews):
    assert command("build", reviews, "--column", "text", "--encoder", "hashing", "--store", store).code == 0
    return store


@pytest.fixture
def damaged(built):
    """A store with one rotten vector."""
    (path,) = (built / "shards").rglob("*.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    return built


def test_a_healthy_store_needs_nothing(command, built):
    done = command("repair", "--store", built)
    assert (done.code, done.out) == (0, "no damage found; nothing to repair\n")
    assert not (built / "quarantine").exists()


def test_the_plan_is_shown_and_nothing_changed_by_a_dry_run(command, damaged):
    done = command("repair", "--dry-run", "--store", damaged)
    assert done.code == 4
    assert "goes to quarantine, 2 of its rows to a new one" in done.out
    assert "build again: reviews@1: 1 vector is gone" in done.out
    assert done.out.endswith("nothing was changed\n")
    assert command("verify", "--read-data", "--store", damaged).code == 4
    assert not (damaged / "quarantine").exists()


def test_repair_then_build_makes_the_store_whole(command, damaged, reviews):
    done = command("repair", "--store", damaged)
    assert done.code == 4
    assert "goes to quarantine, 2 of its rows" in done.err
    assert "build again: reviews@1: 1 vector is gone" in done.out
    assert command("verify", "--read-data", "--store", damaged).code == 4
    built = command("build", reviews, "--column", "text", "--encoder", "hashing", "--store", damaged, "--json").json
    assert built["encoded"] == 1
    assert command("verify", "--read-data", "--store", damaged).code == 0


def test_the_summary_lists_what_was_done(command, damaged):
    done = command("repair", "--store", damaged, "--json")
    assert done.code == 4
    assert [shard["salvaged"] for shard in done.json["shards"]] == [2]
    assert done.json["build"] == [{"what": "reviews@1", "vectors": 1, "rows": 0}]
    assert done.json["whole"] == []
    assert len(done.json["quarantined"]) == 1
    assert done.json["index"]
    assert done.err == ""


def test_without_a_store_it_says_so_and_makes_none(command, store):
    assert command("repair", "--store", store).code == 3
    assert not store.exists()


def test_while_something_needs_a_build_it_says_so_and_not_that_there_is_nothing_to_do(command, damaged, reviews):
    command("repair", "--store", damaged)
    again = command("repair", "--store", damaged)
    assert again.code == 4
    assert "build again: reviews@1" in again.out
    assert "nothing to repair" not in again.out
    command("build", reviews, "--column", "text", "--encoder", "hashing", "--store", damaged)
    assert command("repair", "--store", damaged).code == 0


def test_what_is_lost_is_said_and_what_is_rewritten_is_to_be_checked(command, built):
    command("tag", "reviews", "v1", "--store", built)
    tag, log = built / "tags" / "reviews@v1.json", built / "names" / "reviews.jsonl"
    tag.write_text(tag.read_text().replace('"created"', '"creator"'))
    done = command("repair", "--store", built)
    assert done.code == 0
    assert "tags/reviews@v1.json is written anew, from what was readable, check it" in done.err
    assert command("repair", "--store", built, "--json").json["rewritten"] == []
    log.write_text("{")
    done = command("repair", "--store", built)
    assert done.code == 4
    assert "lost: the name reviews: None of its log can be read." in done.out
    assert "nothing is lost" not in done.out
