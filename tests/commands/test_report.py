"""`cachestore report` and `cachestore compare`, and the line of an epoch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cachestore.built import Progress
from cli.bar import Bar
from cli.output import Output
from cli.watch import epoch_line, step_note, watching
from tests.commands.conftest import Command
from tests.commands.test_train import CONFIG, rows, write
from trainer.events import EpochDone, StepDone


@pytest.fixture
def runs(command: Command, tmp_path: Path, store: Path) -> list[Path]:
    """Two runs on the same data, with other learning rates."""
    data, config = write(tmp_path / "things.csv", rows(0, 60)), tmp_path / "config.yaml"
    config.write_text(CONFIG, encoding="utf-8")
    for name, rate in (("a", "0.05"), ("b", "0.001")):
        arguments = ("-c", config, "-o", tmp_path / name, "--store", store, "--set", f"trainer.learning_rate={rate}")
        assert command("train", data, *arguments).code == 0
    return [tmp_path / "a", tmp_path / "b"]


def test_report_writes_the_page_again_and_what_is_asked_for(command: Command, runs: list[Path]) -> None:
    page = runs[0] / "report.html"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    done = command("report", runs[0])
    assert (done.code, done.out) == (0, f"report: {page}\n")
    assert page.read_text(encoding="utf-8") == before
    as_json = command("report", runs[0], "--tensorboard", "--json")
    assert as_json.json == {"report": str(page), "plots": [], "tensorboard": str(runs[0] / "tensorboard")}
    pytest.importorskip("matplotlib")
    plots = command("report", runs[0], "--plots", "--json").json["plots"]
    assert plots
    assert all(Path(plot).is_file() for plot in plots)


def test_train_writes_epochs_for_tensorboard_as_they_end(command: Command, tmp_path: Path, store: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data, config, logs = write(tmp_path / "things.csv", rows(0, 60)), tmp_path / "config.yaml", tmp_path / "logs"
    config.write_text(CONFIG, encoding="utf-8")
    done = command("train", data, "-c", config, "-o", tmp_path / "run", "--store", store, "--tensorboard", logs)
    assert done.code == 0
    (run,) = logs.iterdir()
    found = accumulator.EventAccumulator(str(run / "validation"))
    found.Reload()
    assert [event.step for event in found.Scalars("colour/loss")] == [1, 2, 3]


def test_a_set_and_a_vector_have_a_report(command: Command, tmp_path: Path, store: Path) -> None:
    labels = ("red", "green", "<b>")
    cells = [(f"a {labels[n % 3]} thing {n}", " ".join(labels[: n % 3 + 1]), f"{n % 3} {n % 2}") for n in range(60)]
    data, config = tmp_path / "things.csv", tmp_path / "config.yaml"
    data.write_text("text,tags,place\n" + "".join(",".join(row) + "\n" for row in cells), encoding="utf-8")
    config.write_text(
        "input_features: [{name: text, type: text, encoder: {type: hashing, dim: 64}}]\n"
        "output_features: [{name: tags, type: set}, {name: place, type: vector}]\ntrainer: {epochs: 2}\n",
        encoding="utf-8",
    )
    assert command("train", data, "-c", config, "-o", tmp_path / "run", "--store", store).code == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for words in ("A set output, on the 12 test rows", "A vector output", "Distances", "&lt;b&gt;", "thing"):
        assert words in page


def test_report_of_what_is_no_run_is_an_error_of_usage(command: Command, tmp_path: Path) -> None:
    done = command("report", tmp_path)
    assert done.code == 2
    assert "is not a run" in done.err


def test_report_without_matplotlib_says_what_to_install(
    command: Command, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    done = command("report", runs[0], "--plots")
    assert done.code == 2
    assert "pip install 'cachestore[plots]'" in done.err


def test_compare_shows_differences_and_settings(command: Command, runs: list[Path], tmp_path: Path) -> None:
    done = command("compare", *runs, "--html", tmp_path / "compare.html")
    assert done.code == 0
    assert "the same in all runs" in done.out
    assert "trainer.learning_rate  0.05  0.001" in done.out
    assert f"page: {tmp_path / 'compare.html'}" in done.out
    assert (tmp_path / "compare.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    found = command("compare", *runs, "--json", "--split", "train").json
    assert found["split"] == "train"
    assert [run["name"] for run in found["runs"]] == ["a", "b"]
    loss = next(line for line in found["metrics"] if line["metric"] == "loss")
    assert loss["differences"][1] == pytest.approx(loss["values"][1] - loss["values"][0])
    assert found["config"] == {"trainer.learning_rate": [0.05, 0.001]}


def test_compare_takes_two_runs(command: Command, runs: list[Path]) -> None:
    done = command("compare", runs[0])
    assert done.code == 2
    assert "at least two runs" in done.err


def epoch(**changes: object) -> EpochDone:
    metrics = {
        "train": {"topic": {"loss": 0.5, "accuracy": 0.75}},
        "validation": {"topic": {"loss": 0.6, "accuracy": 0.7}},
    }
    values: dict[str, object] = {
        **{"epoch": 3, "epochs": 20, "metrics": metrics, "chosen_by": ("topic", "accuracy")},
        **{"learning_rate": 0.1, "steps_per_second": 100.0, "seconds": 0.25, "best": True},
    }
    return EpochDone(**values | changes)  # type: ignore[arg-type]


def test_an_epochs_line_has_losses_the_chosen_metric_and_a_mark_of_the_best() -> None:
    line = "epoch  3/20  train loss 0.5000 accuracy 0.7500  validation loss 0.6000 accuracy 0.7000"
    assert epoch_line(epoch()) == f"{line} *  0.25 s"
    assert epoch_line(epoch(best=False)) == f"{line}    0.25 s"
    assert epoch_line(epoch(chosen_by=("topic", "loss"))).count("accuracy") == 0
    two = {"train": {"a": {"loss": 1.0}, "b": {"loss": 2.0, "r2": 0.5}, "combined": {"loss": 3.0}}}
    assert epoch_line(epoch(metrics=two, chosen_by=("b", "r2"))).startswith(
        "epoch  3/20  train loss 3.0000 b r2 0.5000"
    )


def test_an_epochs_line_stays_when_the_bar_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar() as bar:
        bar.epoch(1, 2, "5 steps/s", "epoch 1/2  [train] loss 0.5")
    assert "epoch 1/2  [train] loss 0.5\n" in capsys.readouterr().err


def test_names_in_the_bar_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with Bar() as bar:
        bar.build("odd[/b] \x1b]0;title\x07.csv", Progress(rows=1, total=2, encoded=0, hits=0, seconds=1.0))
        bar.epoch(1, 2, "[/i]", "red \x1b[31m")
    shown = capsys.readouterr().err
    assert "build odd[/b] \\x1b]0;title\\x07.csv" in shown
    assert "red \\x1b[31m" in shown


def test_where_encoders_are_trained_every_epoch_is_told_without_a_terminal_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = {"epoch": 1, "gradient_norm": 1.0, "learning_rate": 0.1, "rows": 8, "seconds": 0.25}
    step = StepDone(step=1, steps=40, loss=1.0, tokens=500, **values)  # type: ignore[arg-type]
    epoch = EpochDone(1, 2, {"train": {"y": {"loss": 0.5}}}, ("y", "loss"), 0.1, 4.0, 2.0, best=True)
    with watching(Output(as_json=False, quiet=False)) as listener:
        listener(epoch)
        listener(step)
        listener(epoch)
    assert capsys.readouterr().err.count("epoch 1/2  train loss 0.5000") == 1


def test_the_bar_of_steps_shows_their_speed_and_the_mean_of_their_losses() -> None:
    values = {"steps": 40, "epoch": 2, "gradient_norm": 1.0, "learning_rate": 0.1, "rows": 8, "seconds": 0.25}
    steps = [StepDone(step=step, loss=1.0 + step, tokens=500, **values) for step in (1, 2)]  # type: ignore[arg-type]
    assert step_note(steps) == "epoch 2  4.0 steps/s  2,000 tokens/s  loss 2.5000"
    pictures = [StepDone(step=1, loss=1.0, tokens=0, **values)]  # type: ignore[arg-type]
    assert step_note(pictures) == "epoch 2  4.0 steps/s  loss 1.0000"
