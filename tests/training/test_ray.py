"""Training by the workers of a Ray cluster: the losses of one process, restarts, and errors that reach the user."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import torch

from cachestore.errors import ConfigError, DataError, EncoderError, ProcessLost, UsageError
from tests.training import groups, live
from trainer import Run, checkpoint, resume, resume_run, run_directory, train
from trainer.events import Event, StepDone
from trainer.schema.backend import RayBackend, RayTrainer
from trainer.strategies import launch
from trainer.strategies.ranks import Ranks

pytest.importorskip("ray", reason="the extra ray")
ROWS = live.columns(live.texts(24))
RAY: dict[str, Any] = {"type": "ray", "trainer": {"strategy": "fsdp", "num_workers": 2}}
# said by Ray's own modules when they are imported
pytestmark = [pytest.mark.filterwarnings("ignore:.use_.* is deprecated:DeprecationWarning"), pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield
    left = [each.name() for each in psutil.Process().children(recursive=True) if "ray" in each.name()]
    assert not left


def curve(run: Run) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step."""
    lines = [json.loads(line) for line in (run.path / "steps.jsonl").read_text().splitlines()]
    return [(line["loss"], line["gradient_norm"]) for line in lines]


def assert_same(one: Run, other: Run, cell: str = "", strategy: str = "") -> str:
    live.assert_same_losses(one, other)
    return groups.assert_alike(cell, strategy, curve(other), curve(one))


def test_shards_in_ray_give_the_losses_of_one_process(models: Path, tmp_path: Path) -> None:
    config = live.config(live.text_input(live.saved(models), trainable=True), trainer={"epochs": 1})
    one = train(config, ROWS, tmp_path / "store", output=tmp_path / "one")
    heard: list[Event] = []
    two = train({**config, "backend": RAY}, ROWS, tmp_path / "store", output=tmp_path / "two", progress=heard.append)
    assert_same(one, two)
    assert [event.step for event in heard if isinstance(event, StepDone)] == [1, 2]
    assert {path.name for path in two.path.iterdir()} == {path.name for path in one.path.iterdir()}


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(("kind", "tuning"), [("bert", "full"), ("bert", "lora"), ("llama", "lora")])
def test_every_cell_gives_the_losses_of_one_process(
    models: Path, tmp_path: Path, table: list[str], strategy: str, kind: str, tuning: str
) -> None:
    settings: dict[str, Any] = (
        {"trainable": True} if tuning == "full" else {"adapter": {"type": "lora", "r": 4, "dropout": 0.0}}
    )
    config = live.config(
        live.text_input(live.saved(models, kind), **settings),
        trainer={"epochs": 2, "gradient_accumulation_steps": 2, "batch_size": 4},
    )
    backend = {"type": "ray", "trainer": {"strategy": strategy, "num_workers": 2}}
    one = train(config, ROWS, tmp_path / "store", output=tmp_path / "one")
    two = train({**config, "backend": backend}, ROWS, tmp_path / "store", output=tmp_path / "two")
    table.append(assert_same(one, two, f"{kind}, {tuning}", f"{strategy} on Ray"))


def at_step(step: int, act: Callable[[], object]) -> Callable[[Event], None]:
    """A listener that acts once, when a step is over."""
    acted: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step >= step and not acted:
            acted.append(event.step)
            act()

    return listen


def kill_a_worker() -> None:
    workers = [
        each for each in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(each.cmdline())
    ]
    workers[-1].kill()


def saving(ranks: Any, tell: Any, job: Any, saved: Any) -> Any:
    """What a worker does, saving its state at every step."""
    resume.SAVE_SECONDS = 0.0  # type: ignore[misc]
    return launch._work(ranks, tell, job, saved)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_work", saving)


def longer(models: Path) -> dict[str, Any]:
    """A config of 24 steps."""
    return live.config(live.text_input(live.saved(models), trainable=True), trainer={"epochs": 12, "early_stop": -1})


@pytest.mark.long
@pytest.mark.usefixtures("eager")
def test_a_worker_that_is_killed_is_restarted_with_the_state_that_was_saved(models: Path, tmp_path: Path) -> None:
    config = longer(models)
    heard: list[Event] = []
    kill = at_step(8, kill_a_worker)

    def listen(event: Event) -> None:
        heard.append(event)
        kill(event)

    two = train({**config, "backend": RAY}, ROWS, tmp_path / "store", output=tmp_path / "two", progress=listen)
    assert_same(train(config, ROWS, tmp_path / "store", output=tmp_path / "one"), two)
    steps = [event.step for event in heard if isinstance(event, StepDone)]
    assert steps.count(1) == 1
    assert {*steps} == {*range(1, 25)}


@pytest.mark.long
@pytest.mark.usefixtures("eager")
def test_a_run_whose_workers_die_too_often_says_so_and_goes_on(models: Path, tmp_path: Path) -> None:
    config = longer(models)
    backend = {**RAY, "max_failures": 0, "storage_path": str(tmp_path / "kept")}
    with pytest.raises(ProcessLost, match=r"of the 2 that train died.*--resume"):
        train(
            {**config, "backend": backend}, ROWS, tmp_path / "store", output=tmp_path / "two",
            progress=at_step(8, kill_a_worker),
        )  # fmt: skip
    heard: list[Event] = []
    run = resume_run(tmp_path / "two", data=ROWS, progress=heard.append)
    assert next(event.step for event in heard if isinstance(event, StepDone)) > 1
    assert_same(train(config, ROWS, tmp_path / "store", output=tmp_path / "one"), run)
    assert not list((tmp_path / "kept").iterdir())


@pytest.mark.long
def test_what_the_work_raises_ends_the_run_at_once(models: Path, tmp_path: Path) -> None:
    model = tiny_copy(models, tmp_path)
    config = live.config(live.text_input(model, trainable=True), backend=RAY)

    def break_it(event: Event) -> None:
        if getattr(event, "phase", "") == "epochs":
            (model / "model.safetensors").write_bytes(b"no weights")

    with pytest.raises(EncoderError, match="cannot be loaded"):
        train(config, ROWS, tmp_path / "store", output=tmp_path / "run", progress=break_it)


def test_a_state_that_finds_no_room_ends_the_run_and_one_that_lost_another_worker_is_left_to_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.strategies import ray as strategy

    def raising(error: OSError) -> Callable[..., None]:
        def report(*_: object, **__: object) -> None:
            raise error

        return report

    full = OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    for ranks in (Ranks(0, 2, torch.device("cpu")), Ranks(1, 2, torch.device("cpu"))):
        monkeypatch.setattr(strategy.ray.train, "report", raising(full))
        with pytest.raises(UsageError, match=r"kept at /kept \(No space left on device\)\. Make room.* Go on\."):
            strategy._report(tmp_path, ranks, "/kept", "Go on.")
        monkeypatch.setattr(strategy.ray.train, "report", raising(TimeoutError("a barrier")))
        with pytest.raises(TimeoutError, match="a barrier"):
            strategy._report(tmp_path, ranks, "/kept", "Go on.")


def test_a_place_for_states_that_cannot_be_one_is_told_before_a_cluster_starts(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    backend = {**RAY, "storage_path": str(tmp_path / "file" / "kept")}
    config = live.config(live.text_input(live.saved(models), trainable=True), backend=backend)
    with pytest.raises(UsageError, match=r"storage_path: .*file/kept cannot be a folder \(Not a directory\)"):
        train(config, ROWS, tmp_path / "store", output=tmp_path / "run")


def test_a_run_over_an_older_one_is_left_to_go_on_when_ray_has_its_state(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with run_directory.new_run(place, "run") as older:
        pass
    begun: list[Path] = []

    def stopped() -> None:
        with run_directory.new_run(place, "run") as run:
            kept = run.folder / checkpoint.RAY / f"cachestore-{run.id}" / "checkpoint_1"
            kept.mkdir(parents=True)
            (kept / checkpoint.STATE).touch()
            begun.append(run.folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert begun[0] != older.folder
    assert begun[0].is_dir()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DataError("late")], ids=repr)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_whose_state_may_be_in_another_place_is_left(
    tmp_path: Path, error: BaseException, elsewhere: bool
) -> None:
    with run_directory.new_run(tmp_path / "run", "run"):
        pass
    for place, begun in ((tmp_path / "run", ".run.new-*"), (tmp_path / "first", "first")):
        with pytest.raises(type(error)), run_directory.new_run(place, "run") as run:  # noqa: PT012
            kept = run.folder / checkpoint.RAY
            (kept if elsewhere else kept / "cachestore-1").mkdir(parents=True)
            raise error
        stays = elsewhere or (place.name == "first" and isinstance(error, KeyboardInterrupt))
        assert bool(list(tmp_path.glob(begun))) == stays


def test_gpus_that_this_machine_has_not_are_refused_and_a_cluster_that_may_grow_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.strategies import ray as strategy

    monkeypatch.setattr(strategy.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(strategy.ray, "remote", lambda **_: lambda desk: SimpleNamespace(remote=desk))
    for chosen in (RayTrainer(use_gpu=True), RayTrainer(resources_per_worker={"GPU": 1})):
        backend = RayBackend(trainer=chosen)
        heard: list[Any] = []
        alone = strategy._Run(cast("Any", None), backend, str(tmp_path), "", grows=False)
        with pytest.raises(ConfigError, match=r"1 workers take 1 GPUs, and this machine has 0\..*backend\.address"):
            alone._check_resources(heard.append)
        assert not heard
        strategy._Run(cast("Any", None), backend, str(tmp_path), "", grows=True)._check_resources(heard.append)
        assert [notice.text for notice in heard] == [
            "1 workers take 1 GPUs, and the Ray cluster has 0: training waits until it has them."
        ]


def test_a_run_joins_the_cluster_of_this_machine_but_not_one_that_another_run_started_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.strategies import ray as strategy

    joined: list[str] = []
    monkeypatch.setattr(strategy.ray, "init", lambda address, **_: joined.append(address))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with contextlib.ExitStack() as stack:
        strategy._connect(RayBackend(), stack)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:6379")  # as `ray start` does
    with contextlib.ExitStack() as stack:
        strategy._connect(RayBackend(), stack)
    assert joined == ["local", "127.0.0.1:6379"]


def tiny_copy(models: Path, place: Path) -> Path:
    return Path(shutil.copytree(live.saved(models), place / "model"))


PROGRAM = """
import signal
import sys
from pathlib import Path
from tests.training import live, test_ray
from trainer import train
from trainer.events import StepDone

def tell(event):
    if isinstance(event, StepDone):
        print(event.step, flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell has put the tests in the background
place = Path(sys.argv[2])
config = {**test_ray.longer(Path(sys.argv[1])), "backend": test_ray.RAY}
train(config, sys.argv[3], place / "store", output=place / "run", progress=tell)
"""


@pytest.mark.long
def test_an_interrupt_saves_the_state_and_leaves_no_process(models: Path, tmp_path: Path) -> None:
    live.saved(models)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in live.texts(24)))
    words = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(models), str(tmp_path), str(data)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 5:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode != 0
    _, alive = psutil.wait_procs(children, 60)
    assert not alive
    heard: list[Event] = []
    run = resume_run(tmp_path / "run", progress=heard.append)
    assert next(event.step for event in heard if isinstance(event, StepDone)) > 5
    assert_same(train(longer(models), data, tmp_path / "store", output=tmp_path / "one"), run)
