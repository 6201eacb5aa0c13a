"""Ranks are processes: what becomes of them, and of their parent, when one of them fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cachestore.errors import ConfigError, DataError, OutOfMemory, ProcessLost
from cli import train as train_command
from trainer.events import Notice
from trainer.strategies import handover, launch
from trainer.strategies.processes import Processes
from trainer.strategies.ranks import ALONE, Ranks
from trainer.strategies.scratch import Scratch

Tell = Callable[[Any], None]


def test_a_killed_rank_is_named_with_its_signal_and_the_others_end() -> None:
    with pytest.raises(ProcessLost) as failure, Processes(2) as processes:
        processes.run(_one_is_killed, remedy="Go on with this.")
    assert str(failure.value) == (
        "Process 1 of the 2 that train was killed by SIGKILL, as the system does when memory runs out. Go on with this."
    )
    assert all(rank._process.returncode is not None for rank in processes._ranks)


def _one_is_killed(ranks: Ranks, _: Tell) -> None:
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.most(0)


def test_what_a_rank_raises_reaches_the_parent_as_it_is_and_a_bug_with_its_traceback() -> None:
    with Processes(1) as processes, pytest.raises(DataError, match=r"^row 3 is bad$"):
        processes.run(_raise, DataError("row 3 is bad"))
    with Processes(1) as processes, pytest.raises(ZeroDivisionError) as failure:
        processes.run(_raise, ZeroDivisionError("1/0"))
    (note,) = failure.value.__notes__
    assert note.startswith("In rank 0 of 1:")
    assert "in _raise" in note


def _raise(ranks: Ranks, tell: Tell, error: Exception) -> None:
    raise error


def test_an_error_on_one_rank_ends_those_that_wait_for_it() -> None:
    with Processes(2) as processes, pytest.raises(ConfigError, match="only here"):
        processes.run(_raise_on_one)


def test_a_bug_on_one_rank_is_not_lost_in_what_it_does_to_the_others() -> None:
    with Processes(2) as processes, pytest.raises(ZeroDivisionError):
        processes.run(_fail_on_one, 1)


def _fail_on_one(ranks: Ranks, _: Tell, where: int) -> None:
    if ranks.rank == where:
        raise ZeroDivisionError
    ranks.most(0)


def _raise_on_one(ranks: Ranks, _: Tell) -> None:
    if ranks.rank == 1:
        raise ConfigError("only here")
    ranks.most(0)


def test_an_interrupt_is_passed_on_and_waits_until_ranks_have_saved(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    with pytest.raises(KeyboardInterrupt), Processes(1) as processes:
        processes.run(_save_when_interrupted, saved, tell=_interrupt_soon)
    assert saved.exists()


def test_an_interrupt_while_ranks_start_ends_them_without_a_word() -> None:
    program = textwrap.dedent("""
        import threading, os, signal, sys
        from trainer.strategies.processes import Processes
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            Processes(2)
        except KeyboardInterrupt:
            sys.exit(130)
    """)
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (130, "")


def test_a_process_of_torchrun_that_ends_is_an_error_of_the_first_and_tells_its_own(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def gone(_: Ranks | None) -> None:
        raise RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    def full() -> None:
        raise OutOfMemory("too little memory")

    monkeypatch.setattr(launch, "_join", Ranks)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ProcessLost, match="Another of the processes that torchrun started has ended, and says why"):
        launch.lead(gone)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(launch, "follow", full)
    with pytest.raises(SystemExit) as ended:
        train_command.command()
    assert ended.value.code == OutOfMemory.exit_code
    assert capfd.readouterr() == ("", "error: process 1: too little memory\n")


def test_what_rank_0_has_passes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []

    def broadcast(box: list[Any], src: int, device: torch.device) -> None:
        devices.append(device)

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    Ranks(0, 2, torch.device("cuda", 0)).first("a job")
    assert devices == [torch.device("cpu")]


def _interrupt_soon(_: Any) -> None:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()


def _save_when_interrupted(ranks: Ranks, tell: Tell, saved: Path) -> None:
    tell("begun")
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1)
        saved.touch()
        raise


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_ranks_end_with_a_parent_that_is_killed() -> None:
    program = textwrap.dedent("""
        import time
        from trainer.strategies.processes import Processes
        processes = Processes(1)
        print(processes._ranks[0]._process.pid, flush=True)
        time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        rank = int(parent.stdout.readline())
        assert _runs(rank)
        parent.kill()
    end = time.monotonic() + 10
    while _runs(rank) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _runs(rank)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_arrays_and_tensors_are_handed_over_as_they_are_and_shared(tmp_path: Path) -> None:
    numbers = np.arange(12, dtype=np.int32).reshape(3, 4)
    given = {
        "numbers": numbers,
        "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).T,
        "none": torch.zeros(0, 3),
        "one": torch.tensor(True),
        "notice": Notice("as it was"),
    }
    handover.write(given, tmp_path / "file")
    found = handover.read(tmp_path / "file")
    assert found["notice"] == given["notice"]
    np.testing.assert_array_equal(found["numbers"], numbers)
    for name in ("half", "none", "one"):
        torch.testing.assert_close(found[name], given[name], rtol=0, atol=0)
    found["numbers"][0] = -1  # a page of its own
    np.testing.assert_array_equal(handover.read(tmp_path / "file")["numbers"], numbers)


def test_rows_are_gathered_in_their_order_and_their_gradients_come_back(pair: Processes) -> None:
    for rows in (1, 2, 5):
        vectors, gradient = pair.run(_gather, rows)
        torch.testing.assert_close(vectors, torch.arange(rows * 3.0).reshape(rows, 3))
        torch.testing.assert_close(gradient, 2 * vectors[ALONE.share(rows)][::2])


def _gather(ranks: Ranks, _: Tell, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    whole = torch.arange(rows * 3.0).reshape(rows, 3)
    local = whole[ranks.share(rows)].clone().requires_grad_()
    vectors = ranks.gather(local, rows)
    (vectors * whole).sum().backward()  # type: ignore[no-untyped-call]
    assert local.grad is not None
    assert ranks.most(ranks.rank) == 1
    assert ranks.first(ranks.rank) == 0
    assert ranks.sum(torch.ones(2)).tolist() == [2.0, 2.0]
    return vectors.detach(), local.grad


FOLLOWER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
from trainer.strategies import launch
launch.follow()
"""


def test_a_process_of_torchrun_that_waits_for_the_first_ends_when_it_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1]), "TORCHELASTIC_RUN_ID": "x"}
        place = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "GLOO_SOCKET_IFNAME": "lo"}
        with subprocess.Popen(
            [sys.executable, "-c", FOLLOWER], env={**os.environ, **meeting, **place}, stderr=subprocess.DEVNULL
        ) as process:
            connection, _ = server.accept()
            with connection:
                process.terminate()
                try:
                    assert process.wait(20) == -signal.SIGTERM
                finally:
                    process.kill()


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib; from trainer.strategies.scratch import Scratch;"
        "print(Scratch('ranks-', pathlib.Path(sys.argv[1])).path, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    left = Path(done.stdout.strip())
    assert left.is_dir()
    (tmp_path / "ranks-else").mkdir()  # not of ours
    (tmp_path / "ranks-else" / "lock").touch()
    first = Scratch("ranks-", tmp_path)
    assert not left.exists()
    second = Scratch("ranks-", tmp_path)
    assert first.path.is_dir()
    for scratch in (first, second):
        scratch.close()
    assert [path.name for path in tmp_path.iterdir()] == ["ranks-else"]
