"""Bytes of picture files to RGB arrays, in worker processes beside the model.

A picture is data from anywhere: it may be a bomb, hang a codec or crash it. It is decoded, resized and cropped in a
process that may die of it: the picture is then refused with a reason, and the next one gets a new process. Workers are
started by their script (they import Pillow, not torch and not the caller's program), and end with the process that
started them.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cachestore.encoders.picture_worker import ANSWER, REQUEST
from cachestore.errors import EncoderError
from cachestore.keys import Json

# Raised whenever the rules of picture_worker change what the pixels of a picture are.
PICTURE_PREPROCESSING: Final = 1
MAX_PIXELS: Final = 89_478_485  # what Pillow takes for a bomb
SECONDS: Final = 30.0  # for one picture
_START_SECONDS: Final = 60.0
_SCRIPT: Final = Path(__file__).with_name("picture_worker.py")

Pixels: TypeAlias = NDArray[np.uint8]


class _Died(Exception):
    """The worker ended, or does not speak as it should."""


class _Late(Exception):
    """The worker did not answer in time."""


class Decoder:
    """A pool of worker processes, started as they are needed. Safe to use from several threads."""

    def __init__(self, workers: int | None = None, *, seconds: float = SECONDS, max_pixels: int = MAX_PIXELS) -> None:
        self.workers = workers or len(os.sched_getaffinity(0))
        self.seconds = seconds
        self.max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="pictures")
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._alive: set[_Worker] = set()
        self._lock = threading.Lock()
        self._closed = False

    def start(self, payloads: Sequence[bytes], plan: Mapping[str, Json], out: Pixels) -> list[Future[str | None]]:
        """Begin to decode picture i into ``out[i]`` (height, width, 3), all as ``plan`` says.

        Each future gives None, or why that picture has no pixels; then its row of ``out`` is zeros.
        Raises EncoderError (in a future) when workers cannot be started.
        """
        words = json.dumps({**plan, "max_pixels": self.max_pixels}, sort_keys=True).encode()
        return [self._threads.submit(self._decode, payload, words, out[i]) for i, payload in enumerate(payloads)]

    def close(self) -> None:
        """End the workers at once; pictures under way are given up."""
        with self._lock:
            self._closed = True
            workers = list(self._alive)
        for worker in workers:
            worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            worker.close()

    def forget(self) -> None:
        """In a forked child: let go of the parent's workers, which go on."""
        for worker in self._alive:
            worker.forget()
        self._closed = True

    def _decode(self, payload: bytes, plan: bytes, out: Pixels) -> str | None:
        for _ in range(2):  # twice: a worker may die of something else, such as the system's want of memory
            worker = self._worker()
            try:
                reason = worker.ask(plan, payload, out, self.seconds)
            except (_Died, _Late) as trouble:
                self._drop(worker)
                out[:] = 0
                if self._closed:
                    return "was given up"
                if isinstance(trouble, _Late):
                    return f"took longer than {self.seconds:g} s to decode"
            else:
                self._idle.put(worker)
                return reason
        return "crashes its decoder"

    def _worker(self) -> _Worker:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            pass
        worker = _Worker()
        with self._lock:
            if not self._closed:
                self._alive.add(worker)
                return worker
        worker.kill()
        worker.close()
        raise EncoderError("the decoder of pictures is closed.")

    def _drop(self, worker: _Worker) -> None:
        worker.kill()
        worker.close()
        with self._lock:
            self._alive.discard(worker)


class _Worker:
    """One process. One thread at a time speaks with it."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(_SCRIPT)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        # a group of its own: Ctrl-C at the terminal is for the program, which then ends its workers
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            process_group=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._ending = threading.Lock()
        self._greeted = False

    def ask(self, plan: bytes, payload: bytes, out: Pixels, seconds: float) -> str | None:
        """Pixels into ``out``, or the reason why there are none. Raises _Died, _Late; EncoderError if it never ran."""
        if not self._greeted:
            self._greet()
        end = time.monotonic() + seconds
        self._write(REQUEST.pack(len(plan), len(payload)) + plan, end)
        self._write(payload, end)
        has_pixels, size = ANSWER.unpack(self._read(ANSWER.size, end))
        if not has_pixels:
            out[:] = 0
            return bytes(self._read(size, end)).decode()
        if size != out.nbytes:
            raise _Died
        self._read_into(out.data.cast("B"), end)
        return None

    def kill(self) -> None:
        """End the process at once. It is safe to call it again, and from another thread."""
        with self._ending:
            if self._process.returncode is None:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """Close the pipes, once nobody reads them."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def forget(self) -> None:
        self.close()
        self._process.returncode = 0  # a child of the parent, not ours to wait for

    def _greet(self) -> None:
        try:
            self._read(ANSWER.size, time.monotonic() + _START_SECONDS)
        except (_Died, _Late) as error:
            raise EncoderError(
                f"the process that decodes pictures does not start. See why: {sys.executable} -P {_SCRIPT} < /dev/null"
            ) from error
        self._greeted = True

    def _write(self, data: bytes, end: float) -> None:
        view = memoryview(data)
        while view:
            _wait(self._in, select.POLLOUT, end)
            try:
                view = view[os.write(self._in, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise _Died from None

    def _read(self, size: int, end: float) -> bytearray:
        data = bytearray(size)
        self._read_into(memoryview(data), end)
        return data

    def _read_into(self, view: memoryview, end: float) -> None:
        while view:
            _wait(self._out, select.POLLIN, end)
            try:
                count = os.readv(self._out, [view])
            except BlockingIOError:
                continue
            except OSError:
                raise _Died from None
            if count == 0:
                raise _Died
            view = view[count:]


def _wait(descriptor: int, event: int, end: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
        raise _Late


_shared: list[Decoder] = []
_sharing = threading.Lock()


def shared() -> Decoder:
    """The pool of this process."""
    with _sharing:
        if not _shared:
            _shared.append(Decoder())
        return _shared[0]


def close() -> None:
    """End the workers of this process; the next picture starts new ones."""
    with _sharing:
        decoders = _shared[:]
        _shared.clear()
    for decoder in decoders:
        decoder.close()


def _forget() -> None:
    global _sharing  # noqa: PLW0603  # another thread may have held it when the process was forked
    _sharing = threading.Lock()
    for decoder in _shared:
        decoder.forget()
    _shared.clear()


atexit.register(close)
os.register_at_fork(after_in_child=_forget)
