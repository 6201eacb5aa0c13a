"""Signals that end a training wait for its step to end, so that its state can be saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM)
_waiting: list[Interrupt] = []


class Interrupt:
    """The first signal that came, None before one does."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object]] = {}

    def defer(self) -> None:
        """Take the place of the handlers; a signal that has none, as SIGTERM at first, goes on ending the process at once."""
        if threading.current_thread() is not threading.main_thread():
            return  # only there may handlers be set, and only there do they run
        for number in _ENDING:
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, self._note)

    def restore(self) -> None:
        """Put the handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def deliver(self) -> None:
        """Let the handler that was there before have the signal. Raises KeyboardInterrupt where it does not."""
        self.restore()
        if self.signal is not None and threading.current_thread() is threading.main_thread():
            signal.raise_signal(self.signal)
        raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:  # a second one does not wait
            self._before[number](number, frame)
        self.signal = number


@contextmanager
def deferred() -> Iterator[Interrupt]:
    """Signals that come while the body runs are noted; a second one is delivered at once."""
    interrupt = Interrupt()
    interrupt.defer()
    _waiting.append(interrupt)
    try:
        yield interrupt
    finally:
        _waiting.remove(interrupt)
        interrupt.restore()


def ask() -> None:
    """As a SIGINT, for a training that runs in another thread of this process, which no signal reaches."""
    for interrupt in _waiting:
        interrupt.signal = signal.SIGINT
