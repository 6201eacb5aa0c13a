"""`cachestore forget`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

import cachestore
from cachestore.keys import fingerprint, key
from tests.commands.conftest import Command
from tests.store.pictures import CountingPictures

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
    for word in ("1 vector in 1 shard", "version: shop@1", str(reviews), "audit.jsonl", "encodes them again"):
        assert word in done.out
    assert rows_left(built) == [False, True, False, False, True]
    assert "no file of the store has them any more" in done.out
    again = command("forget", "--text", "warm and soft", "--store", built, "--json")
    assert (again.code, again.json["done"]["vectors"], again.json["plan"]["unknown_texts"]) == (0, 0, 1)


def test_what_the_store_does_not_know_is_said_to_be_unknown_and_nothing_is_done(
    command: Command, built: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(built.rglob("*"))
    for given, hint in ((reviews, "taken as one text, of 6 lines"), ("-", "stdin ends in a newline")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"warm and soft\n")))
        done = command("forget", "--file", given, "--store", built)
        assert done.code == 0, done.err
        assert done.out.startswith("nothing of this is stored under any encoder\nnothing was done\nhint: ")
        assert hint in done.out
        assert "no file" not in done.out
    assert sorted(built.rglob("*")) == before
    assert rows_left(built) == [True, True, True, False, True]


def test_what_is_unknown_beside_something_known_is_counted(command: Command, built: Path) -> None:
    done = command("forget", "--text", "warm and soft", "--text", "a\n", "--text", "b", "--store", built)
    assert "of 3 texts, 2 not stored under any encoder" in done.out
    assert "no file of the store has what was found of them any more" in done.out
    assert done.out.count("hint: ") == 1


def test_the_claim_is_of_the_files_of_the_store_and_others_are_listed(command: Command, built: Path) -> None:
    (shard,) = built.glob("shards/*/*.arrow")
    copies = [built / "copy.arrow", shard.with_name(f"{shard.name}.bak"), built / "old" / "x"]
    inside = [built / folder / "x.arrow" for folder in ("trash/mine", "quarantine", "index")]
    for copy in (*copies, *inside):
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(shard.read_bytes())
    done = command("forget", "--text", "warm and soft", "--store", built)
    assert done.code == 0, done.err
    for listed in ("copy.arrow", f"{shard.relative_to(built)}.bak", "old"):
        assert f"not looked at, not the store's: {listed}\n" in done.out
    assert "no file of the store's own has them any more" in done.out
    assert [copy.exists() for copy in (*copies, *inside)] == [True] * 3 + [False] * 3


@pytest.fixture
def cut_short(command: Command, built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store in which a forget of "warm and soft" died halfway."""
    with monkeypatch.context() as patched:
        patched.setattr("cachestore.forget._rewrite_shards", lambda plan: 1 / 0)
        assert command("forget", "--text", "warm and soft", "--store", built).code == 1
    return built


def test_a_forget_that_was_cut_short_is_told_and_the_next_reports_what_it_finished(
    command: Command, cut_short: Path, reviews: Path
) -> None:
    for told in (command("ls", "--store", cut_short), command("build", reviews, *HASHING, "--store", cut_short)):
        assert "cachestore forget --resume" in told.err
    for said in (command("verify", "--store", cut_short), command("gc", "--store", cut_short)):
        assert said.code == 0
        assert "cachestore forget --resume" in said.out
    assert "forget --resume" in command("forget", "--text", "x", "--store", cut_short, "--dry-run").out
    done = command("forget", "--text", "never stored", "--store", cut_short)
    assert "finished first, of a forget that was cut short: 1 vector and" in done.out
    assert done.out.endswith("nothing was done\n")
    assert command("ls", "--store", cut_short).err == ""


def test_a_forget_that_was_cut_short_is_finished_alone(command: Command, cut_short: Path) -> None:
    assert command("forget", "--resume", "--store", cut_short, "--dry-run", "--json").json["plan"]["vectors"] == 1
    assert command("forget", "--resume", "--store", cut_short, "--json").json["done"]["vectors"] == 1
    assert rows_left(cut_short) == [False, True, False, False, True]
    assert "no forget was cut short" in command("forget", "--resume", "--store", cut_short).out
    assert command("forget", "--resume", "--text", "x", "--store", cut_short).code == 2


@pytest.mark.parametrize("journal", ["{", "[]", '{"format": 1, "keys": ["ab"]}', '{"format": 1}', ""])
def test_a_broken_journal_is_damage_and_a_finding(command: Command, built: Path, journal: str) -> None:
    (built / "forgetting.json").write_text(journal)
    for line in (["--text", "x"], ["--resume"], ["--resume", "--dry-run"]):
        done = command("forget", *line, "--store", built)
        assert (done.code, "Delete that file" in done.err) == (4, True)
    found = command("verify", "--store", built, "--json")
    assert found.code == 4
    assert [(one["kind"], one["what"]) for one in found.json["findings"]] == [("forget", "forgetting.json")]


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
    assert "/dev/zero is larger than 64 MiB" in done.err


def test_a_picture_larger_than_any_text_is_forgotten_by_its_file(command: Command, tmp_path: Path) -> None:
    picture = tmp_path / "large.jpg"
    picture.write_bytes(b"picture" * (3 << 20))
    encoder = CountingPictures()
    with cachestore.open_store(tmp_path / "store") as store:
        cachestore.build(store, {"image": [str(picture)]}, {"image": encoder})
    assert command("forget", "--file", picture, "--store", tmp_path / "store").code == 0
    with cachestore.open_store(tmp_path / "store") as store:
        assert store.missing([key(fingerprint(encoder.spec), picture.read_bytes())])
