from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cachestore.errors import DamageError, UsageError
from cachestore.store import open_store
from tests.store import tiny_models
from tests.training import live
from tests.training.heads import classifier
from tests.training.test_loop import SETTINGS, kinds
from tests.training.test_run import config, messages, write
from trainer import checkpoint, resume, resume_run, run_directory, train
from trainer.loop import fit
from trainer.optim import Adam, Lbfgs, Plateau, Schedule, Sgd

# Trains with the arguments it gets, saves after every epoch, and kills itself at a moment: before the call that makes it
# so many of what the moment names.
DRIVER = """
import json, os, signal, sys
import trainer.loop, trainer.report, trainer.run
from cachestore import outside
from trainer import checkpoint, resume

moment, count, arguments = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
resume.SAVE_SECONDS = 0.0
left = [count]

def killing(function, when=lambda *a: True):
    def call(*args, **kwargs):
        if when(*args):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

match moment:
    case "metrics": checkpoint.append_metrics = killing(checkpoint.append_metrics)
    case "state": outside.write = killing(outside.write, lambda path, *_: path.name == checkpoint.STATE)
    case "rename": os.replace = killing(os.replace, lambda old, new: str(new).endswith(checkpoint.STATE))
    case "step": torch_step = trainer.optim.Adam.step; trainer.optim.Adam.step = killing(torch_step)
    case "model": checkpoint.write_model = killing(checkpoint.write_model)
    case "summary": checkpoint.write_summary = killing(checkpoint.write_summary)

if arguments.pop("resume", False):
    trainer.run.resume_run(arguments["output"], arguments["store"])
else:
    trainer.run.train(arguments.pop("config"), arguments.pop("data"), arguments.pop("store"), **arguments)
"""
EPOCHS = 6


def settings(**trainer: Any) -> dict[str, Any]:
    """Everything that has a state: dropout, a schedule, a plateau, early stopping."""
    section = {
        "epochs": EPOCHS,
        "batch_size": 16,
        "learning_rate": 0.02,
        "early_stop": -1,
        "learning_rate_scheduler": {"decay": "cosine", "reduce_on_plateau": 2, "reduce_on_plateau_patience": 0},
        **trainer,
    }
    return config(trainer=section, combiner={"type": "concat", "num_fc_layers": 1, "output_size": 16, "dropout": 0.3})


def killed(tmp_path: Path, moment: str, count: int, **arguments: Any) -> None:
    given = {"output": str(tmp_path / "run"), "store": str(tmp_path / "store"), **arguments}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, moment, str(count), json.dumps(given)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def data(tmp_path: Path) -> Path:
    return write(tmp_path / "messages.csv", messages(90))


@pytest.fixture
def undisturbed(tmp_path: Path) -> Path:
    """A finished run that nothing stopped."""
    with open_store(tmp_path / "store") as store:
        return train(settings(), data(tmp_path), store, output=tmp_path / "undisturbed").path


def assert_same(run: Path, reference: Path) -> None:
    for name in (checkpoint.WEIGHTS, checkpoint.METRICS, checkpoint.CONFIG):
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name
    mine, other = (json.loads((path / checkpoint.SUMMARY).read_text()) for path in (run, reference))
    for key in ("metrics", "epochs", "best_epoch", "rows", "learning_rate"):
        assert mine[key] == other[key]
    assert not (run / checkpoint.STATE).exists()
    assert not (run / checkpoint.STARTED).exists()


@pytest.mark.timeout(200)  # some processes that import torch, one after the other
@pytest.mark.parametrize(
    ("moment", "count"),
    [("step", 2), ("metrics", 4), ("state", 1), ("rename", 3), ("step", 19), ("model", 1), ("summary", 1)],
)
def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, undisturbed: Path, moment: str, count: int
) -> None:
    killed(tmp_path, moment, count, config=settings(), data=str(tmp_path / "messages.csv"))
    run = resume_run(tmp_path / "run")
    assert run.path == tmp_path / "run"
    assert_same(tmp_path / "run", undisturbed)
    left = [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert not [name for name in left if not name.endswith(f".part-{name[-8:]}")]


@pytest.mark.timeout(200)
def test_a_run_may_be_killed_again_while_it_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    killed(tmp_path, "metrics", 4, config=settings(), data=str(tmp_path / "messages.csv"))
    killed(tmp_path, "state", 2, resume=True)
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.timeout(200)
def test_a_killed_run_that_was_to_replace_another_still_does(tmp_path: Path, undisturbed: Path) -> None:
    with open_store(tmp_path / "store") as store:
        train(settings(epochs=1), data(tmp_path), store, output=tmp_path / "run")
    (tmp_path / "run" / "note.txt").write_text("mine")
    killed(tmp_path, "metrics", 6, config=settings(), data=str(tmp_path / "messages.csv"))
    assert json.loads((tmp_path / "run" / checkpoint.SUMMARY).read_text())["epochs"] == 1
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", undisturbed)
    assert (tmp_path / "run" / "note.txt").exists()
    assert not list(tmp_path.glob(".run.*"))


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted after its third epoch."""
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)

    def interrupt(event: Any) -> None:
        if getattr(event, "epoch", 0) == 4:
            raise KeyboardInterrupt

    with open_store(tmp_path / "store") as store, pytest.raises(KeyboardInterrupt):
        train(settings(), data(tmp_path), store, output=tmp_path / "run", progress=interrupt)
    return tmp_path / "run"


def test_whoever_replaces_a_stopped_run_is_told_that_it_could_go_on(stopped: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with open_store(tmp_path / "store") as store:
        train(settings(epochs=1), data(tmp_path), store, output=stopped, progress=lambda e: told.append(str(e)))
    assert f"cachestore train --resume {stopped}" in " ".join(told)


def test_changed_data_is_refused(stopped: Path, tmp_path: Path) -> None:
    rows = messages(90)
    rows[5]["topic"] = "login"
    write(tmp_path / "messages.csv", rows)
    with pytest.raises(UsageError, match=r"not what the run at .* was trained on before"):
        resume_run(stopped)


def test_a_changed_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    given = {**settings(), "input_features": [{"name": "wait", "type": "number"}]}

    def interrupt(event: Any) -> None:
        if getattr(event, "epoch", 0) == 4:
            raise KeyboardInterrupt

    with open_store(tmp_path / "store") as store, pytest.raises(KeyboardInterrupt):
        train(given, data(tmp_path), store, output=tmp_path / "run", progress=interrupt)
    rows = messages(90)
    rows[5]["wait"] = "77"
    write(tmp_path / "messages.csv", rows)
    with pytest.raises(UsageError, match=r"not what the run at .* was trained on before"):
        resume_run(tmp_path / "run")


def test_a_run_that_was_moved_stays_where_it_is_named(stopped: Path, undisturbed: Path, tmp_path: Path) -> None:
    moved = stopped.rename(tmp_path / "moved")
    shutil.copytree(undisturbed, tmp_path / "run")  # another one at its old place
    before = (tmp_path / "run" / checkpoint.MARK).read_bytes()
    assert resume_run(moved).path == moved
    assert_same(moved, undisturbed)
    assert (tmp_path / "run" / checkpoint.MARK).read_bytes() == before


@pytest.mark.timeout(200)
def test_of_two_runs_that_were_stopped_the_later_goes_on(stopped: Path, undisturbed: Path, tmp_path: Path) -> None:
    killed(tmp_path, "metrics", 2, config=settings(epochs=2), data=str(tmp_path / "messages.csv"))
    assert resume_run(stopped).epochs == 2
    assert not list(tmp_path.glob(".run.*"))


def test_data_of_a_split_that_the_run_had_not_is_refused(stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="had no test data"):
        resume_run(stopped, test=tmp_path / "messages.csv")


def test_a_state_of_a_gpu_does_not_go_on_without_one() -> None:
    if torch.cuda.is_available():
        pytest.skip("here is one")
    saved: list[resume.ResumeState] = []
    model, rows = classifier(), kinds(40)
    fit(
        model,
        rows,
        None,
        optimizer=Adam(model.parameters()),
        settings=SETTINGS,
        on_epoch=lambda _: None,
        save=saved.append,
    )
    tensors = {**saved[0].tensors, "generator": {**saved[0].tensors["generator"], "cuda": torch.zeros(16)}}
    state = resume.ResumeState(saved[0].counters, tensors)
    with pytest.raises(UsageError, match="trained on a GPU, and there is none"):
        fit(
            model,
            rows,
            None,
            optimizer=Adam(model.parameters()),
            settings=SETTINGS,
            on_epoch=lambda _: None,
            resume=state,
        )


def test_a_state_that_is_damaged_is_named(stopped: Path) -> None:
    state = stopped / checkpoint.STATE
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(DamageError, match=r"The state .* cannot be read"):
        resume_run(stopped)


def test_a_run_that_another_process_trains_is_left_alone(stopped: Path) -> None:
    with (
        run_directory.continued(stopped, stopped),
        pytest.raises(UsageError, match="being trained by another process"),
    ):
        resume_run(stopped)


def test_what_cannot_go_on_says_why(undisturbed: Path, stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is finished; there is nothing to resume"):
        resume_run(undisturbed)
    with pytest.raises(UsageError, match="There is no run at"):
        resume_run(tmp_path / "nothing")
    (stopped / checkpoint.STARTED).unlink()
    with pytest.raises(UsageError, match="stopped before it trained"):
        resume_run(stopped)


def test_data_in_memory_has_to_be_given_again(tmp_path: Path, undisturbed: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(messages(90))

    def interrupt(event: Any) -> None:
        if getattr(event, "epoch", 0) == 4:
            raise KeyboardInterrupt

    with open_store(tmp_path / "store") as store, pytest.raises(KeyboardInterrupt):
        train(settings(), table, store, output=tmp_path / "run", progress=interrupt)
    with pytest.raises(UsageError, match=r"had its train data in memory. Give it again"):
        resume_run(tmp_path / "run")
    resume_run(tmp_path / "run", data=table)
    assert_same(tmp_path / "run", undisturbed)


def test_nothing_is_saved_before_some_seconds_have_passed(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        seen = []

        def look(event: Any) -> None:
            seen.append((tmp_path / "run" / checkpoint.STATE).exists())

        train(settings(), data(tmp_path), store, output=tmp_path / "run", progress=look)
    assert not any(seen)


def _sgd(parameters: Any) -> Sgd:
    return Sgd(parameters, momentum=0.9)


@pytest.mark.parametrize("make", [Adam, _sgd, Lbfgs])
def test_every_epoch_is_a_place_to_go_on_from(make: Any) -> None:
    chosen = dataclasses.replace(
        SETTINGS,
        epochs=6,
        learning_rate=0.1,
        early_stop=3,
        schedule=Schedule("linear"),
        plateau=Plateau(times=2, patience=0, factor=0.5, metric="loss", split="validation"),
    )
    dropout = 0.0 if make is Lbfgs else 0.3
    train_rows, held_out = kinds(60, noise=2.0), kinds(40, seed=1, noise=2.0)

    def fitted(state: resume.ResumeState | None, saved: list[resume.ResumeState]) -> tuple[torch.Tensor, Any]:
        model = classifier(layers=1, dropout=dropout)

        def save(found: resume.ResumeState) -> None:
            copies = {
                group: {name: each.clone() for name, each in named.items()} for group, named in found.tensors.items()
            }
            saved.append(resume.ResumeState(json.loads(json.dumps(found.counters)), copies))

        result = fit(
            model,
            train_rows,
            held_out,
            optimizer=make(model.parameters()),
            settings=chosen,
            on_epoch=lambda _: None,
            resume=state,
            save=save,
        )
        weights = torch.cat([tensor.flatten() for tensor in model.state_dict().values()])
        return weights, (result.epochs, result.best_epoch, result.metrics)

    states: list[resume.ResumeState] = []
    expected, told = fitted(None, states)
    assert len(states) == told[0]
    for state in states:
        found, again = fitted(state, [])
        assert torch.equal(found, expected)
        assert again == told


def test_the_store_may_be_elsewhere(stopped: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "store", tmp_path / "other")
    with open_store(tmp_path / "other") as store:
        resume_run(stopped, store)
    assert_same(stopped, undisturbed)


def trained_settings(tmp_path: Path, **encoder: Any) -> dict[str, Any]:
    """An encoder with dropout that is trained, with a schedule, in batches that are added up."""
    models = tmp_path / "models"
    directory = models if models.exists() else tiny_models.save(models, "bert")
    feature = live.text_input(directory, **encoder)
    trainer = {"epochs": 3, "batch_size": 8, "effective_batch_size": 16, "learning_rate": 0.01, "early_stop": -1}
    given = config(trainer={**trainer, "learning_rate_scheduler": {"decay": "linear", "warmup_fraction": 0.2}})
    return {**given, "input_features": [feature]}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "encoder",
    [{"trainable": True}, {"adapter": {"type": "adalora", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2}}],
    ids=["full", "adalora"],
)
def test_a_run_that_trains_an_encoder_goes_on_within_the_epoch_it_was_killed_in(
    tmp_path: Path, encoder: dict[str, Any]
) -> None:
    given = trained_settings(tmp_path, **encoder)
    with open_store(tmp_path / "store") as store:
        reference = train(given, data(tmp_path), store, output=tmp_path / "undisturbed").path
    killed(tmp_path, "step", 6, config=given, data=str(tmp_path / "messages.csv"))
    steps = (tmp_path / "run" / checkpoint.STEPS).read_text().splitlines()
    resume_run(tmp_path / "run")
    assert_same(tmp_path / "run", reference)
    for file in (path for path in reference.rglob("*.safetensors") if path.parent.name == "text"):
        assert (tmp_path / "run" / file.relative_to(reference)).read_bytes() == file.read_bytes(), file
    told, expected = (
        [{**json.loads(line), "seconds": 0} for line in (run / checkpoint.STEPS).read_text().splitlines()]
        for run in (tmp_path / "run", reference)
    )
    assert told == expected
    assert 0 < len(steps) < len(expected)


def test_a_run_that_goes_on_to_its_end_leaves_no_older_one_that_was_stopped_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "run"

    def stopped() -> None:
        with run_directory.new_run(place, "train") as run:
            (run.folder / checkpoint.STATE).touch()
            raise KeyboardInterrupt

    with run_directory.new_run(place, "train") as run:
        (run.folder / checkpoint.SUMMARY).touch()
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            stopped()
    with run_directory.continued(place, run_directory.unfinished(place)) as run:
        (run.folder / checkpoint.SUMMARY).touch()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
