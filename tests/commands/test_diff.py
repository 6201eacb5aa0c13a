"""`cachestore diff`."""

from __future__ import annotations

from pathlib import Path

from tests.commands.conftest import Command

HEAD = "text,title\n"


def build(command: Command, store: Path, data: Path, rows: list[str], encoder: str = "hashing", *columns: str) -> None:
    data.write_text(HEAD + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    chosen = [word for column in columns or ("text",) for word in ("--column", column, "--encoder", encoder)]
    done = command("build", data, *chosen, "--name", "shop", "--store", store)
    assert done.code == 0, done.err


def test_diff_counts_rows_and_names_some(command: Command, store: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    rows = [f"text {number},t" for number in range(30)]
    build(command, store, data, rows)
    build(command, store, data, [*rows[:4], "changed,t", *rows[5:20], *rows[21:], *(f"new {n},t" for n in range(9))])

    done = command("diff", "shop@1", "shop", "--store", store, "--json")
    assert done.code == 0, done.err
    assert done.json["rows"] == {
        "kept": 28,
        "added": {"count": 9, "rows": [29, 30, 31, 32, 33]},
        "removed": {"count": 1, "rows": [20]},
        "changed": {"count": 1, "rows": [[4, 4]]},
        "moved": {"count": 0, "rows": []},
    }
    assert (done.json["compared_by"], done.json["encoders"], done.json["same"]) == (["text"], {}, False)

    text = command("diff", "shop@1", "shop", "--store", store).out
    assert "9 added, 1 removed, 1 changed, 0 moved, 28 kept; compared by text" in text
    assert "added: 29, 30, 31, 32, 33, and 4 more (--rows 9)" in text
    assert "changed: 4 → 4" in text
    assert "35, 36, 37\n" in command("diff", "shop@1", "shop", "--store", store, "--rows", 9).out
    assert "same manifest" in command("diff", "shop", "shop@2", "--store", store).out


def test_diff_tells_settings_of_encoders_and_columns(command: Command, store: Path, tmp_path: Path) -> None:
    data, rows = tmp_path / "data.csv", ["a,b", "c,d"]
    build(command, store, data, rows, "{type: hashing, dim: 32}", "text", "title")
    build(command, store, data, rows, "{type: hashing, dim: 64}")
    done = command("diff", "shop@1", "shop@2", "--store", store, "--json")
    assert done.json["rows"] is None
    assert {"field": "dim", "old": 32, "new": 64} in done.json["encoders"]["text"]
    assert (done.json["columns_added"], done.json["columns_removed"]) == ([], ["title"])
    text = command("diff", "shop@1", "shop@2", "--store", store).out
    for line in ("rows: they cannot be compared", "column removed: title", "its encoder changed", "  dim: 32 → 64"):
        assert line in text


def test_diff_of_what_is_not_there_says_so(command: Command, store: Path, tmp_path: Path) -> None:
    build(command, store, tmp_path / "data.csv", ["a,b"])
    done = command("diff", "shop@1", "shop@2", "--store", store)
    assert (done.code, "version 1 only" in done.err) == (3, True)
    assert command("diff", "shop", "shop", "--rows", "-1", "--store", store).code == 2
