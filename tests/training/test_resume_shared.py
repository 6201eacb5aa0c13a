"""The state of a training whose processes each have rows of it: written by any number of them, read by any other."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cachestore.errors import UsageError
from tests.training import words
from trainer import checkpoint, resume
from trainer.model import Model
from trainer.moving import Moving
from trainer.optim import Adam, Sgd
from trainer.resume import ResumeState, Saver, read_state
from trainer.strategies import Trained, trained_of
from trainer.strategies.ranks import Ranks

COUNTERS = {"epoch": 1, "batch": 4}


class Alike(Ranks):
    """A process whose others say what it says."""

    def most(self, number: int) -> int:
        return number


class Apart(Ranks):
    """A process whose others see another folder, which has a state."""

    def most(self, number: int) -> int:
        return max(number, 1)


class Failing(Ranks):
    """A process one of whose others failed."""

    def most(self, number: int) -> int:
        return 1


def identity() -> str:
    return "rows"


class Process:
    """One of several that train a model: it has its rows of the parameters of the encoder and all of the others."""

    def __init__(self, rank: int, world: int, seed: int = 0, ranks: type[Ranks] = Alike) -> None:
        self.ranks = ranks(rank, world)
        self.model: Model = words.model(seed=seed)
        self.trained = [self._own(each) for each in trained_of(self.model)]
        self.moving = Moving(self.model, self.trained, self.ranks)
        self.optimizer = Adam([each.parameter for each in self.trained])

    def _own(self, trained: Trained) -> Trained:
        if trained.encoder is None or self.ranks.world == 1:
            return trained
        parts = trained.parameter.detach().chunk(self.ranks.world)
        missing = trained.parameter.detach()[:0]
        rows = parts[self.ranks.rank] if self.ranks.rank < len(parts) else missing
        return Trained(trained.name, nn.Parameter(rows.clone()), trained.encoder, sharded=True)

    def state(self) -> ResumeState:
        tensors, rows = self.moving.split(self.moving.tensors())
        whole, own = self.moving.split_state(self.optimizer.state_dict(), self.optimizer.parameters)
        groups = {"model": tensors, "optimizer": whole}
        return ResumeState(COUNTERS, groups, {"model": rows, "optimizer": own} if self.moving.sharded else {})

    def load(self, state: ResumeState) -> None:
        group = {name: (state.tensors.get(name, {}), state.rows.get(name, {})) for name in ("model", "optimizer")}
        self.moving.load(self.moving.joined(*group["model"]))
        self.optimizer.load_state_dict(self.moving.joined_state(*group["optimizer"], self.optimizer.parameters))

    def everything(self) -> dict[str, Tensor]:
        """The same in all processes of all worlds, once what they have rows of is joined."""
        found = {each.name: each.parameter.detach() for each in self.trained}
        for place, each in enumerate(self.trained):
            for kind in ("first", "second", "step"):
                found[f"{each.name} {kind}"] = self.optimizer.state_dict()[f"{kind}.{place}"]
        return found


def stepped(world: int) -> list[Process]:
    """Processes that took some steps, whose gradients depend on the place in the whole parameter."""
    processes = [Process(rank, world) for rank in range(world)]
    for step in range(3):
        for process in processes:
            draw = torch.Generator().manual_seed(step)
            for whole, each in zip(trained_of(process.model), process.trained, strict=True):
                gradient = torch.randn(whole.parameter.shape, generator=draw)
                parts = gradient.chunk(world) if each.sharded else (gradient,)
                rank = process.ranks.rank if each.sharded else 0
                each.parameter.grad = (parts[rank] if rank < len(parts) else gradient[:0]).clone()
            process.optimizer.step(0.01)
    return processes


def joined(processes: list[Process]) -> dict[str, Tensor]:
    parts = [process.everything() for process in processes]
    sharded = {each.name for each in processes[0].trained if each.sharded}
    return {
        name: torch.cat([part[name] for part in parts]) if name.split(" ")[0] in sharded and tensor.dim() else tensor
        for name, tensor in parts[0].items()
    }


def save(folder: Path, processes: list[Process]) -> None:
    for process in reversed(processes):  # rank 0 makes it valid
        Saver(folder, identity, process.ranks)(process.state())


@pytest.mark.parametrize("written", [1, 2, 3])
@pytest.mark.parametrize("read", [1, 2, 4])
def test_any_number_of_processes_goes_on_from_the_state_of_any_other(tmp_path: Path, written: int, read: int) -> None:
    before = stepped(written)
    save(tmp_path, before)
    after = [Process(rank, read, seed=1) for rank in range(read)]
    for process in after:
        state = read_state(tmp_path, identity, process.ranks)
        assert state is not None
        process.load(state)
    expected, found = joined(before), joined(after)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_each_process_writes_its_rows_alone(tmp_path: Path) -> None:
    processes = stepped(2)
    save(tmp_path, processes)
    assert len(list((tmp_path / checkpoint.STATES).iterdir())) == 2
    state = read_state(tmp_path, identity)
    assert state is not None
    assert not any("table" in name for name in state.tensors["model"])
    assert len(state.rows["model"]["encoders.feature:text.module.table.weight"]) == words.WORDS


def test_a_state_replaces_the_one_before_it_and_leaves_none_of_its_files(tmp_path: Path) -> None:
    processes = stepped(2)
    save(tmp_path, processes)
    first = {path.name for path in (tmp_path / checkpoint.STATES).iterdir()}
    for process in reversed(processes):
        later = ResumeState({"epoch": 1, "batch": 5}, process.state().tensors, process.state().rows)
        Saver(tmp_path, identity, process.ranks)(later)
    kept = {path.name for path in (tmp_path / checkpoint.STATES).iterdir()}
    assert len(kept) == 2
    assert not kept & first
    resume.finished(tmp_path)
    assert not list(tmp_path.iterdir())


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """No file can grow beyond ``most`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("world", [1, 2])
def test_a_disk_that_is_full_leaves_the_state_that_was_saved_before(tmp_path: Path, world: int) -> None:
    processes = stepped(world)
    save(tmp_path, processes)
    expected = joined(processes)
    for process in processes:
        process.optimizer.step(0.01)
        later = ResumeState({"epoch": 2, "batch": 0}, process.state().tensors, process.state().rows)
        with (
            full_disk(300),
            pytest.raises(UsageError, match=r"cannot be saved in .* \(File too large\)\. Make room; then"),
        ):
            Saver(tmp_path, identity, process.ranks)(later)
    assert not [path for path in tmp_path.rglob("*") if "part" in path.name]
    after = [Process(rank, world, seed=1) for rank in range(world)]
    for process in after:
        state = read_state(tmp_path, identity, process.ranks)
        assert state is not None
        assert state.counters == COUNTERS
        process.load(state)
    found = joined(after)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_process_whose_others_could_not_write_fails_as_well(tmp_path: Path) -> None:
    process = Process(1, 2, ranks=Failing)
    with pytest.raises(UsageError, match="another process could not write its part"):
        Saver(tmp_path, identity, process.ranks)(process.state())
    assert not (tmp_path / checkpoint.STATE).exists()


def test_processes_that_do_not_all_find_the_state_go_on_from_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Some of the processes find the state .*, others do not"):
        read_state(tmp_path, identity, Apart(1, 2))
    assert read_state(tmp_path, identity, Alike(1, 2)) is None


def test_metrics_that_cannot_be_brought_to_the_disk_are_told_as_a_state_that_cannot_be_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / checkpoint.METRICS).write_text("{}\n")

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(resume.outside, "sync", full)
    with pytest.raises(UsageError, match=r"cannot be saved in .* \(No space left on device\)"):
        Saver(tmp_path, identity)(ResumeState(COUNTERS, {}))


def test_saves_that_take_long_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    saver = Saver(tmp_path, identity)
    now[0] = resume.SAVE_SECONDS
    assert saver.due()

    def slow(*_: object) -> None:
        now[0] += 3.0

    monkeypatch.setattr(resume.outside, "write", slow)
    saver(ResumeState(COUNTERS, {}))
    now[0] += 50.0
    assert not saver.due()
    now[0] += 10.0
    assert saver.due()


def test_an_optimizer_that_has_no_state_yet_is_shared_out_too() -> None:
    process = Process(0, 2)
    optimizer = Sgd([each.parameter for each in process.trained], momentum=0.9)
    assert process.moving.split_state(optimizer.state_dict(), optimizer.parameters) == ({}, {})
