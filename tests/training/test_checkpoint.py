from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from cachestore.errors import DamageError, UsageError
from trainer import checkpoint


def written(path: Path) -> nn.Linear:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    checkpoint.write_config(path, {"input_features": [{"name": "ä"}]})
    checkpoint.append_metrics(path, {"epoch": 1, "metrics": {"kind": {"roc_auc": math.nan}}})
    checkpoint.append_metrics(path, {"epoch": 2})
    checkpoint.write_model(path, model, {"inputs": []})
    checkpoint.write_summary(path, {"epochs": 2, "loss": math.inf})
    return model


def test_a_run_reads_back_what_was_written(tmp_path: Path) -> None:
    model = written(tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == {"input_features": [{"name": "ä"}]}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"epoch": 1, "metrics": {"kind": {"roc_auc": None}}}, {"epoch": 2}]
    assert checkpoint.read_model(tmp_path) == {"format": 1, "inputs": []}
    assert checkpoint.read_summary(tmp_path) == {"epochs": 2, "loss": None}
    other = nn.Linear(3, 2)
    checkpoint.read_weights(tmp_path, other)
    assert torch.equal(other.weight, model.weight)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
        "summary.json",
    }


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written(tmp_path / name)
        contents.append((tmp_path / name / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "model.json").write_text('{"format": 2}')
    with pytest.raises(UsageError, match=r"run format 2, and this version reads 1\. Upgrade"):
        checkpoint.read_model(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_description_is_damage(tmp_path: Path, content: str) -> None:
    written(tmp_path)
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(DamageError, match=r"model\.json is damaged"):
        checkpoint.read_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 60])
def test_damaged_weights_are_damage(tmp_path: Path, keep: int) -> None:
    model = written(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamageError, match=r"model\.safetensors cannot be read"):
        checkpoint.read_weights(tmp_path, model)


def test_weights_of_another_model_are_damage(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(DamageError, match="size mismatch"):
        checkpoint.read_weights(tmp_path, nn.Linear(3, 5))


def test_what_is_no_run_is_named_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no run at"):
        checkpoint.read_model(tmp_path / "absent")
    with pytest.raises(UsageError, match="is not a run"):
        checkpoint.read_model(tmp_path)
    checkpoint.write_config(tmp_path, {})
    with pytest.raises(UsageError, match="did not finish"):
        checkpoint.read_model(tmp_path)


def test_default_directories_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [checkpoint.create(None, "train") for _ in range(3)]
    assert made == [Path("runs/train"), Path("runs/train_1"), Path("runs/train_2")]
    assert all(path.is_dir() for path in made)


def test_a_run_is_replaced_and_other_files_are_not_touched(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoint.create(tmp_path, "train") == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_directory_that_is_no_run_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for attempt in (lambda: checkpoint.create(tmp_path, "train"), lambda: checkpoint.check_output(tmp_path)):
        with pytest.raises(UsageError, match="is not empty and holds no run"):
            attempt()
    with pytest.raises(UsageError, match="is a file"):
        checkpoint.create(tmp_path / "notes.txt", "train")
    with pytest.raises(UsageError, match="cannot be made"):
        checkpoint.create(tmp_path / "notes.txt" / "below", "train")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)
    before = (tmp_path / "summary.json").read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match=r"summary\.json cannot be written \(No space left"):
        checkpoint.write_summary(tmp_path, {"epochs": 3})
    assert (tmp_path / "summary.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 5
