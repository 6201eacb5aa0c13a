"""`cachestore init` and `cachestore schema`: what they write is what the trainer reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from PIL import Image

from tests.commands.conftest import Command
from trainer import load_config
from trainer.json_schema import config_schema

KINDS = ("tops", "dresses", "shoes")


def shop(count: int = 300) -> pd.DataFrame:
    """One column of each kind, two that teach nothing, and targets that follow from them."""
    numbers = range(count)
    return pd.DataFrame(
        {
            "id": [f"r{n:05d}" for n in numbers],
            "Review: text": [f"a {KINDS[n % 3]} thing that is number {n} of many" if n % 9 else None for n in numbers],
            "department": [KINDS[n % 3] if n % 50 else "?" for n in numbers],
            "age": [20 + n % 50 if n % 10 else None for n in numbers],
            "returned": ["yes" if n % 4 == 0 else "no" for n in numbers],
            "tags": [f"{KINDS[n % 3]}|{('new', 'old')[n % 2]}" for n in numbers],
            "sold": [f"2024-{n % 12 + 1:02d}-{n % 28 + 1:02d}" for n in numbers],
            "place": [f"[{n % 7}, {n % 5}.5, {n % 3}, 1]" for n in numbers],
            "shop": ["main"] * count,
            "stars": [n % 5 + 1 for n in numbers],
            "price": [10.25 + n % 3 for n in numbers],
            "class": [("plain", "odd")[n % 5 == 0] for n in numbers],
        }
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "shop.csv"
    shop().to_csv(path, index=False)
    return path


def types(config: dict[str, Any], side: str) -> dict[str, str]:
    return {feature["name"]: feature["type"] for feature in config[side]}


def test_the_config_has_a_feature_for_every_column_that_teaches_something(command: Command, data: Path) -> None:
    done = command("init", data, "--target", "stars", "--encoder", "hashing")
    assert done.code == 0
    config = yaml.safe_load(done.out)
    assert types(config, "input_features") == {
        "Review: text": "text",
        "department": "category",
        "age": "number",
        "returned": "binary",
        "tags": "set",
        "sold": "date",
        "place": "vector",
        "price": "number",
        "class": "category",
    }
    assert types(config, "output_features") == {"stars": "category"}
    for said in (
        "# left out: id (",
        "# left out: shop (always 'main')",
        "11.3% missing",
        "'?' in 2.0%",
        "5 classes: 1 20.0%",
    ):
        assert said in done.out
    assert load_config(config).preprocessing.split is not None


@pytest.mark.parametrize("target", ["stars", "returned", "class", "price", "tags", "place"])
def test_the_config_trains_as_it_stands(command: Command, data: Path, tmp_path: Path, store: Path, target: str) -> None:
    config, run = tmp_path / "config.yaml", tmp_path / "run"
    done = command("init", data, "--target", target, "--encoder", "{type: hashing, dim: 16}", "-o", config, "--json")
    assert done.code == 0, done.err
    assert done.json["columns"]["shop"] == {"type": None, "why": "always 'main'", "missing": 0.0, "values": 1}
    done = command(
        "train", data, "-c", config, "--store", store, "--output", run, "--set", "trainer.epochs=2", "--quiet"
    )
    assert done.code == 0, done.err
    assert target in json.loads((run / "summary.json").read_text(encoding="utf-8"))["metrics"]["test"]


def test_two_targets_and_neither_is_an_input(command: Command, data: Path) -> None:
    config = yaml.safe_load(command("init", data, "--target", "stars", "--target", "price", "--encoder", "hashing").out)
    assert types(config, "output_features") == {"stars": "category", "price": "number"}
    assert not {"stars", "price"} & types(config, "input_features").keys()


def test_a_folder_of_pictures_and_a_column_that_splits(command: Command, tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "photos"
    for split, count in (("train", 6), ("validation", 2), ("test", 2)):
        for label, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (8, 8), (*colour[:1], number, colour[2])).save(
                    folder / split / label / f"{number}.png"
                )
    done = command("init", folder, "--target", "label")
    config = yaml.safe_load(done.out)
    assert types(config, "input_features") == {"image": "image"}
    assert config["preprocessing"]["split"] == {"type": "fixed", "column": "split"}
    assert load_config(config).input_features[0].type == "image"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Name a column of the data with --target"),
        (["--target", "strs"], "has no column 'strs'; did you mean 'stars'?"),
        (["--target", "Review: text"], "'Review: text' cannot be a target: it looks like text"),
        (["--target", "shop"], "'shop' cannot be a target: always 'main'"),
        (["--target", "stars", "--encoder", "minillm"], "did you mean 'minilm'"),
    ],
)
def test_what_cannot_be_predicted_is_refused(command: Command, data: Path, arguments: list[str], says: str) -> None:
    done = command("init", data, *arguments)
    assert done.code == 2
    assert says in done.err


def test_a_file_that_is_there_is_kept(command: Command, data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine", encoding="utf-8")
    done = command("init", data, "--target", "stars", "-o", tmp_path / "config.yaml")
    assert done.code == 2
    assert "is there already" in done.err
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "mine"


def test_a_split_column_of_one_word_splits_nothing(command: Command, tmp_path: Path) -> None:
    rows = [{"x": n * 7 % 11 + 0.5, "split": "train", "y": ("a", "b")[n % 2]} for n in range(40)]
    pd.DataFrame(rows).to_csv(tmp_path / "d.csv", index=False)
    config = yaml.safe_load(command("init", tmp_path / "d.csv", "--target", "y").out)
    assert config["preprocessing"]["split"]["type"] == "stratify"
    assert types(config, "input_features") == {"x": "number"}


def test_odd_names_are_quoted(command: Command, tmp_path: Path) -> None:
    names = ["yes", "a: b", "# c", "- d", "{e}, f", "line\nbreak", "1e3", "combined"]
    rows = [{name: (n * (place + 3)) % 11 + 0.5 for place, name in enumerate(names)} for n in range(40)]
    path = tmp_path / "odd.parquet"
    pd.DataFrame(rows).to_parquet(path)
    done = command("init", path, "--target", "combined")
    config = load_config(yaml.safe_load(done.out))
    assert [feature.column for feature in config.input_features] == names[:-1]
    assert [(output.name, output.column) for output in config.output_features] == [("target", "combined")]


def test_the_schema_is_printed_or_written(command: Command, tmp_path: Path) -> None:
    assert command("schema").json == config_schema()
    done = command("schema", "-o", tmp_path / "schema.json", "--json")
    assert done.json == {"output": str(tmp_path / "schema.json")}
    assert json.loads((tmp_path / "schema.json").read_text(encoding="utf-8")) == config_schema()
