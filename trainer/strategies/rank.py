"""The program of one rank: it joins the others, does what its parent asks, and ends with it.

Run as ``python -m trainer.strategies.rank FD RANK WORLD PARENT MEETING``: FD is its end of a connection, MEETING a file to meet
the others at. Started so, and not by multiprocessing, it never imports the program of whoever trains.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

_PDEATHSIG: Final = 1
_PATIENCE: Final = timedelta(hours=1)  # of a rank for the others; of one that died it hears at once


def main(descriptor: int, rank: int, world: int, parent: int, meeting: str) -> None:
    """Serve until the parent hangs up."""
    _end_with(parent)
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # which lets the loop save its state; a parent in the background ignores SIGINT
        signal.signal(number, signal.default_int_handler)
    ours: Connection[Any, Any] = Connection(descriptor)
    try:
        ranks = _join(rank, world, meeting)
        _send(ours, "ready", None)
        while True:
            try:
                path, function = pickle.loads(ours.recv_bytes())
            except EOFError:
                break
            _do(ours, ranks, Path(path), function)
    except BaseException as error:
        _tell(ours, error)
        raise SystemExit(1) from None
    # without destroy_process_group, which may wait for ranks that have ended
    sys.stderr.flush()
    os._exit(0)


def _join(rank: int, world: int, meeting: str) -> Any:
    from trainer.strategies.joining import join

    return join(rank, world, rank, init_method=f"file://{meeting}", timeout=_PATIENCE)


def _do(ours: Connection[Any, Any], ranks: Any, path: Path, function: Callable[..., Any]) -> None:
    from trainer.strategies import handover

    arguments = handover.read(path)
    _send(ours, "read", None)

    def tell(event: object) -> None:
        _send(ours, "event", event)

    value = function(ranks, tell, *arguments)
    _send(ours, "done", value if ranks.rank == 0 else None)


def _send(ours: Connection[Any, Any], kind: str, value: object) -> None:
    ours.send_bytes(
        pickle.dumps((kind, value))
    )  # ``send`` would leave tensors in shared memory, for children of multiprocessing


def _tell(ours: Connection[Any, Any], error: BaseException) -> None:
    """The error as it is where it can be sent, and how it came about."""
    told = traceback.format_exc()
    try:
        again = pickle.loads(pickle.dumps(error))
        sent = again if type(again) is type(error) else None
    except Exception:  # whatever a class makes of being pickled
        sent = None
    try:
        _send(ours, "failed", (sent, told))
    except OSError:  # the parent is gone
        os._exit(1)


def _end_with(parent: int) -> None:
    """Have this process killed when its parent ends, however that does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
