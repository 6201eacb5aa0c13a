"""`cachestore explain`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.conftest import Command

HASHING = ("--column", "text", "--encoder", "{type: hashing, dim: 32}")
OTHER = ("--column", "text", "--encoder", "{type: hashing, dim: 32, lowercase: false}")


def test_new_rows_and_a_changed_encoder_are_told_apart(command: Command, store: Path, reviews: Path) -> None:
    command("build", reviews, *HASHING, "--store", store)
    stored = command("explain", reviews, *HASHING, "--store", store)
    assert stored.code == 0
    assert "5 rows, all stored: a build would encode nothing" in stored.out

    with reviews.open("a", encoding="utf-8") as file:
        file.write("one more,5,yes\n")
    rows = command("explain", reviews, *HASHING, "--store", store, "--json").json
    assert (rows["rows"], rows["to_encode"]) == (6, 1)
    (column,) = rows["columns"]
    assert (column["hits"], column["to_encode"], column["missing"], column["nearest"]) == (4, 1, 1, None)

    text = command("explain", reviews, *OTHER, "--store", store).out
    for words in (
        "a build would encode 4 texts",
        "nothing stored",
        "used by reviews",
        "has 3 of the new",
        "lowercase true → false",
    ):
        assert words in text
    nearest = command("explain", reviews, *OTHER, "--store", store, "--json").json["columns"][0]["nearest"]
    assert nearest["changes"] == [{"field": "lowercase", "old": True, "new": False}]
    assert (nearest["texts"], nearest["vectors"], nearest["names"]) == (3, 3, ["reviews"])


def test_columns_come_from_a_config_and_no_store_is_made(
    command: Command, store: Path, reviews: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "input_features:\n  - {name: text, type: text, encoder: {type: hashing, dim: 32}}\n"
        "output_features:\n  - {name: helpful, type: binary}\n",
        encoding="utf-8",
    )
    done = command("explain", reviews, "-c", config, "--store", store)
    assert done.code == 0, done.err
    assert "a build would encode 3 texts" in done.out
    assert "There is no store" in done.err
    assert not store.exists()


def test_texts_to_import_are_told(command: Command, store: Path, reviews: Path) -> None:
    command("build", reviews, *HASHING, "--store", store)
    imported = ("--column", "text", "--encoder", "{type: imported, spec: {model: api, dim: 3}}")
    text = command("explain", reviews, *imported, "--store", store).out
    assert "import their vectors" in text
    assert "kind hashing → imported" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("<reviews>",), "-c config.yaml, or --column text"),
        (("<reviews>", "--column", "text", "--encoder", "hshing"), "did you mean 'hashing'"),
        (("<reviews>", "--column", "txet", "--encoder", "hashing"), "did you mean 'text'"),
        (("nowhere.csv", *HASHING), "nowhere.csv"),
    ],
)
def test_wrong_use_is_one_sentence(
    command: Command, store: Path, reviews: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = command("explain", *(str(reviews) if word == "<reviews>" else word for word in arguments), "--store", store)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
