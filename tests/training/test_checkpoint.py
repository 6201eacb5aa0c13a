from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cachestore.errors import ConfigError, DamageError, ProcessLost, TrainingDiverged, UsageError
from trainer import checkpoint, load_config, run_directory

FILES = {"run.json", "config.yaml", "metrics.jsonl", "model.json", "model.safetensors", "summary.json"}


def written(path: Path) -> nn.Linear:
    """A finished run at ``path``."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    with run_directory.new_run(path, "train") as run:
        checkpoint.write_config(run.folder, {"input_features": [{"name": "ä"}]})
        checkpoint.append_metrics(run.folder, {"epoch": 1, "metrics": {"kind": {"roc_auc": math.nan}}})
        checkpoint.append_metrics(run.folder, {"epoch": 2})
        checkpoint.write_model(run.folder, model.state_dict(), {"inputs": []})
        checkpoint.write_summary(run.folder, {"epochs": 2, "loss": math.inf})
    return model


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_run_reads_back_what_was_written(tmp_path: Path) -> None:
    model = written(tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8")) == {"input_features": [{"name": "ä"}]}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"epoch": 1, "metrics": {"kind": {"roc_auc": None}}}, {"epoch": 2}]
    assert checkpoint.read_model(tmp_path) == {"inputs": []}
    assert checkpoint.read_summary(tmp_path) == {"epochs": 2, "loss": None}
    other = nn.Linear(3, 2)
    checkpoint.read_weights(tmp_path, other)
    assert torch.equal(other.weight, model.weight)
    assert contents(tmp_path).keys() == FILES


LOOKS_LIKE_ANOTHER_SCALAR = st.sampled_from(
    ["1e3", "08", "0o7", "yes", "null", "~", "12:30", "1_0", "-.5", "true", "<<", "="]
)
TEXT = st.text(min_size=1, max_size=8) | LOOKS_LIKE_ANOTHER_SCALAR


@given(TEXT, TEXT, st.dictionaries(TEXT, st.floats(1e-9, 1e9), min_size=1, max_size=3), st.floats(1e-12, 1e3))
def test_a_written_config_loads_as_the_same_config(
    tmp_path_factory: pytest.TempPathFactory, column: str, fill: str, weights: dict[str, float], rate: float
) -> None:
    config = load_config(
        {
            "input_features": [
                {
                    "name": "text",
                    "column": column,
                    "type": "text",
                    "encoder": {"type": "hashing"},
                    "preprocessing": {"missing_value_strategy": "fill_with_const", "fill_value": fill},
                }
            ],
            "output_features": [
                {"name": "kind", "column": f"{column} {fill}", "type": "category", "loss": {"class_weights": weights}}
            ],
            "trainer": {"learning_rate": rate},
        }
    )
    folder = tmp_path_factory.mktemp("run")
    checkpoint.write_config(folder, config.resolved())
    assert load_config(folder / "config.yaml") == config


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        written(tmp_path / name)
        contents.append((tmp_path / name / "model.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_a_run_of_another_format_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "run.json").write_text('{"kind": "cachestore run", "format": 2}')
    for read in (checkpoint.read_model, checkpoint.read_summary):
        with pytest.raises(UsageError, match=r"run format 2, and this version reads 1\. Upgrade"):
            read(tmp_path)


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
    with pytest.raises(UsageError, match="is not a run"):
        checkpoint.read_model(tmp_path)
    with run_directory.new_run(tmp_path / "begun", "train"):
        pass
    with pytest.raises(UsageError, match=r"did not finish.*train --resume"):
        checkpoint.read_model(tmp_path / "begun")


def test_default_directories_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = []
    for _ in range(3):
        with run_directory.new_run(None, "train") as run:
            made.append(run)
    assert [run.path for run in made] == [Path("runs/train"), Path("runs/train_1"), Path("runs/train_2")]
    assert all(run.folder == run.path and run.path.is_dir() for run in made)


@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_run_is_replaced_when_the_new_one_is_finished_and_other_files_stay(
    tmp_path: Path, through_a_link: bool
) -> None:
    place = tmp_path / "run"
    written(place)
    (place / "sketches").mkdir()
    (place / "sketches" / "loss.svg").write_text("mine")
    output = place
    if through_a_link:
        output = tmp_path / "latest"
        output.symlink_to(place)
    with run_directory.new_run(output, "train") as run:
        assert run.path == output
        assert run.folder.parent == tmp_path
        assert checkpoint.read_summary(place)["epochs"] == 2
        checkpoint.write_config(run.folder, {})
        checkpoint.append_metrics(run.folder, {"epoch": 1})
        checkpoint.write_model(run.folder, nn.Linear(1, 1).state_dict(), {})
        checkpoint.write_summary(run.folder, {"epochs": 7})
        (place / "notes.txt").write_text("written meanwhile")
    assert checkpoint.read_summary(output) == {"epochs": 7}
    assert contents(place).keys() == FILES | {"notes.txt", "sketches/loss.svg"}
    assert output.is_symlink() == through_a_link
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "latest"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError, MemoryError])
def test_a_rerun_that_fails_leaves_the_finished_run(tmp_path: Path, error: type[BaseException]) -> None:
    written(tmp_path / "run")
    before = contents(tmp_path)

    def fail() -> None:
        with run_directory.new_run(tmp_path / "run", "train") as run:
            checkpoint.append_metrics(run.folder, {"epoch": 1})
            assert (run.folder / "metrics.jsonl").stat().st_size
            raise error("x")

    with pytest.raises(error):
        fail()
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "stays"), [(KeyboardInterrupt, True), (ProcessLost, True), (TrainingDiverged, False)]
)
def test_a_rerun_that_is_stopped_can_go_on_from_its_state(
    tmp_path: Path, error: type[BaseException], stays: bool
) -> None:
    written(tmp_path / "run")
    before = contents(tmp_path / "run")

    def fail() -> None:
        with run_directory.new_run(tmp_path / "run", "train") as run:
            (run.folder / checkpoint.STATE).write_bytes(b"a state")
            raise error("x")

    with pytest.raises(error):
        fail()
    assert contents(tmp_path / "run") == before
    if stays:
        assert (run_directory.unfinished(tmp_path / "run") / checkpoint.STATE).exists()
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(16, os.strerror(16))], ids=repr)
def test_a_run_that_cannot_be_replaced_stays_and_so_does_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException
) -> None:
    written(tmp_path / "run")
    before = contents(tmp_path / "run")
    renames: list[int] = []

    def rename(source: Path, target: Path) -> None:
        renames.append(len(renames) + 1)
        if renames[-1] == step:
            raise error
        Path(source).rename(target)

    def replace() -> None:
        with run_directory.new_run(tmp_path / "run", "train") as run:
            checkpoint.append_metrics(run.folder, {"epoch": 1})
            monkeypatch.setattr(os, "rename", rename)

    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UsageError) as raised:
        replace()
    assert contents(tmp_path / "run") == before
    (new,) = (path for path in tmp_path.iterdir() if path.name != "run")
    assert contents(new).keys() == {"run.json", "metrics.jsonl"}
    if raised.type is UsageError:
        assert f"The new one is whole at {new}" in str(raised.value)


def test_a_new_run_that_fails_is_left_as_far_as_it_got_and_may_be_replaced(tmp_path: Path) -> None:
    def fail() -> None:
        with run_directory.new_run(tmp_path / "run", "train") as run:
            checkpoint.append_metrics(run.folder, {"epoch": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert contents(tmp_path / "run").keys() == {"run.json", "metrics.jsonl"}
    written(tmp_path / "run")
    assert contents(tmp_path).keys() == {f"run/{name}" for name in FILES}


THEIRS = {
    "a config": {"config.yaml": "input_features: []"},
    "a config and metrics": {"config.yaml": "a: 1", "metrics.jsonl": '{"epoch": 1}'},
    "another tool's run.json": {"run.json": '{"format": 1}', "model.json": "{}"},
    "a run.json that is no JSON": {"run.json": "{"},
    "notes": {"notes.txt": "mine"},
}


@pytest.mark.parametrize("theirs", THEIRS)
def test_a_directory_that_is_no_run_is_refused_untouched(tmp_path: Path, theirs: str) -> None:
    for name, text in THEIRS[theirs].items():
        (tmp_path / name).write_text(text)
    for attempt in (lambda: written(tmp_path), lambda: run_directory.check_output(tmp_path)):
        with pytest.raises(UsageError, match="is not empty and holds no run"):
            attempt()
    assert {name: text.decode() for name, text in contents(tmp_path).items()} == THEIRS[theirs]


def test_places_that_cannot_be_a_run_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="a file is in its place"):
        written(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match="a file is in its place"):
        written(tmp_path / "notes.txt" / "below")
    written(tmp_path / "run")
    (tmp_path / "run" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "run" / "below")
    with pytest.raises(UsageError, match=r"cannot be replaced, because it is the working directory"):
        written(Path(".."))
    assert contents(tmp_path / "run").keys() == FILES


def test_a_line_that_finds_no_room_tells_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"steps\.jsonl cannot be written \(.*\)\. Make room; then go on .* --resume RUN"
    ):
        checkpoint.append_step(tmp_path / "gone", {"step": 1})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    before = contents(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"model\.safetensors cannot be written \(No space left"):
        checkpoint.write_model(tmp_path, nn.Linear(3, 2).state_dict(), {})
    assert contents(tmp_path) == before


def test_everything_is_durable_before_the_summary_and_the_summary_when_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append("sync " + place.name.split(".part-")[0].lstrip("."))
        fsync(descriptor)

    def named(source: Path, target: Path) -> None:
        done.append("name " + Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", named)
    written(tmp_path / "run")
    summary = done.index("name summary.json")
    for name in FILES - {"summary.json", "metrics.jsonl"}:
        assert done.index(f"sync {name}") < done.index(f"name {name}") < summary
    folder = [at for at, what in enumerate(done) if what == "sync run"]
    assert max(done.index(f"name {name}") for name in FILES - {"metrics.jsonl"} - {"summary.json"}) < folder[0]
    assert folder[0] < done.index("sync summary.json") < summary < folder[1]
    assert done.index("sync metrics.jsonl") < summary
    assert done[-1] == f"sync {tmp_path.name}"


def test_a_directory_in_which_a_run_is_being_trained_takes_no_other(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with run_directory.new_run(path, "train"):
        for taking in (lambda: run_directory.check_output(path), run_directory.new_run(path, "train").__enter__):
            with pytest.raises(UsageError, match="being trained by another process"):
                taking()
    written(path)  # it was left unfinished, and nobody trains it
    assert (path / "summary.json").exists()
