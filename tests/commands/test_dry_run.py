"""`cachestore train --dry-run` tells what training would take, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cachestore import yaml_source
from cli.app import run
from tests.training import live


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    rows = live.texts(60)
    data, config = tmp_path / "rows.csv", tmp_path / "config.yaml"
    head = list(rows[0])
    lines = [",".join(head), *(",".join(str(row[name]) for name in head) for row in rows)]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    written = live.config(
        live.text_input(live.saved(tmp_path), adapter="lora"),
        {"name": "title", "type": "text", "encoder": "hashing"},
        trainer={"batch_size": "auto", "strategy": "horovod", "num_workers": 2},
    )
    config.write_text(yaml_source.dump(written), encoding="utf-8")
    return str(data), str(config)


def test_it_tells_rows_parameters_and_memory_by_strategy(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    data, config = files
    assert run(["train", data, "-c", config, "--dry-run", "--store", str(tmp_path / "store")]) == 0
    shown = capsys.readouterr()
    assert "42 training rows, 8 rows a step: 6 steps an epoch, 18 at most" in shown.out
    assert "batch_size: auto is found by trying" in shown.out
    assert "text: bert, an adapter on it trained; " in shown.out
    assert "title: hashing, frozen; its vectors of 1,024 come from the store" in shown.out
    for strategy in ("one process ", "ddp, 2 workers * ", "fsdp, 2 workers "):
        assert f"\n{strategy}" in shown.out
    assert "nothing was encoded or written" in shown.out
    assert "horovod runs as ddp" in shown.err
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # no store either
    assert run(["build", data, "--column", "title", "--encoder", "hashing", "--store", str(tmp_path / "store")]) == 0
    there = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file() and "lock" not in path.name)
    assert run(["train", data, "-c", config, "--dry-run", "--store", str(tmp_path / "store")]) == 0
    assert there == sorted(
        path for path in (tmp_path / "store").rglob("*") if path.is_file() and "lock" not in path.name
    )


def test_json_has_the_same(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, config = files
    assert run(["train", data, "-c", config, "--dry-run", "--json", "--store", str(tmp_path / "store")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dry_run"], found["rows"], found["chosen"], found["workers"]) == (True, 42, "ddp", 2)
    one, ddp, fsdp = found["memory"]
    assert (
        one["total"] == sum(value for value in one.values() if isinstance(value, int)) - one["workers"] - one["total"]
    )
    assert fsdp["weights"] < ddp["weights"] == one["weights"]
    text, title = found["encoders"]
    assert 0 < text["trained"] < text["parameters"]
    assert title["mode"] == "cached"


def test_a_config_of_frozen_encoders_is_told_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: tuple[str, str]
) -> None:
    config = tmp_path / "frozen.yaml"
    config.write_text(
        "input_features: [{name: text, type: text, encoder: hashing}]\noutput_features: [{name: topic, type: category}]\n",
        encoding="utf-8",
    )
    ddp = ["--set", "trainer.strategy=ddp"]  # of which heads alone make no use
    assert run(["train", files[0], "-c", str(config), "--dry-run", *ddp, "--store", str(tmp_path / "store")]) == 0
    shown = capsys.readouterr().out
    assert "42 training rows, 128 rows a step: 1 step an epoch, 100 at most" in shown
    assert "ddp" not in shown


def test_what_does_not_fit_the_model_ends_it(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, config = files
    change = "input_features.text.encoder.adapter=adaption_prompt"
    assert run(["train", data, "-c", config, "--dry-run", "--set", change, "--store", str(tmp_path / "store")]) == 2
    assert "adaption_prompt is for models of type llama, mistral, gpt2" in capsys.readouterr().err
    assert run(["train", "--resume", str(tmp_path), "--dry-run"]) == 2


def test_workers_that_are_not_there_are_told(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    data, config = files
    auto = ["--set", "backend.trainer.num_workers=auto"]
    assert run(["train", data, "-c", config, "--dry-run", *auto, "--store", str(tmp_path / "store")]) == 0
    assert "num_workers: auto is 1 here, so ddp would be one process; 2 are shown" in capsys.readouterr().out
