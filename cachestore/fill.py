"""Encoding what a store lacks: payloads of one encoder go in, durable shards come out.

Payloads are encoded in windows and their vectors collected until a shard is full or old enough, so a killed process loses
at most one shard's work. A vector that cannot be stored truthfully (not finite, beyond float16) is refused with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore.encoders import Encoder
from cachestore.errors import EncoderError
from cachestore.keys import Key

Put = Callable[[Sequence[Key], NDArray[Any]], tuple[int, int]]
"""Stores vectors (n, dim) of the stored dtype under their keys, durably; returns the shard's number and its bytes."""


@dataclass(frozen=True)
class Limits:
    """When a shard is closed, whichever comes first, and how much is encoded at once."""

    shard_rows: int = 1 << 16
    shard_bytes: int = 64 << 20
    shard_seconds: float = 30.0
    window_rows: int = 4096
    window_bytes: int = 16 << 20
    window_seconds: float = 5.0


class Fill:
    """Collects distinct unknown payloads of one encoder, encodes them window by window and puts their vectors."""

    def __init__(
        self,
        encoder: Encoder,
        dtype: np.dtype[Any],
        put: Put,
        limits: Limits = Limits(),
        tick: Callable[[], None] | None = None,
    ) -> None:
        self.encoder = encoder
        self.refused: dict[Key, str] = {}
        """Keys whose vector could not be stored, with the reason."""
        self.encoded = 0
        self.bytes_written = 0
        self.shards: set[int] = set()
        """Numbers of the shards written."""
        self._dtype = dtype
        self._put = put
        self._limits = limits
        self._tick = tick
        self._window: dict[Key, bytes] = {}
        self._window_bytes = 0
        self._window_rows = min(256, limits.window_rows)
        self._done: list[tuple[list[Key], NDArray[Any]]] = []
        self._done_keys: set[Key] = set()
        self._nbytes = 0
        self._opened = time.monotonic()

    def holds(self, key: Key) -> bool:
        """Whether a key is on its way into a shard."""
        return key in self._window or key in self._done_keys

    def add(self, key: Key, payload: bytes) -> None:
        """Take a payload to encode; its key is neither stored nor held nor refused yet."""
        self._window[key] = payload
        self._window_bytes += len(payload)
        if len(self._window) >= self._window_rows or self._window_bytes >= self._limits.window_bytes:
            self._encode()

    def flush(self) -> None:
        """Encode and store everything taken so far."""
        if self._window:
            self._encode()
        self.keep()

    def keep(self) -> None:
        """Store what is encoded; payloads still waiting to be encoded are left."""
        done, self._done, self._done_keys, self._nbytes = self._done, [], set(), 0
        if done:
            number, nbytes = self._put(
                [key for keys, _ in done for key in keys], np.concatenate([rows for _, rows in done])
            )
            self.shards.add(number)
            self.bytes_written += nbytes

    def _encode(self) -> None:
        began = time.monotonic()
        keys, payloads = list(self._window), list(self._window.values())
        vectors = np.asarray(self.encoder.encode(payloads))
        if vectors.shape != (len(payloads), self.encoder.dim):
            raise EncoderError(
                f"The encoder returned an array of shape {vectors.shape} for {len(payloads)} payloads of dimension {self.encoder.dim}. "
                "It must return one vector per payload, in order; nothing of this batch was stored."
            )
        stored, reasons = _as_stored(vectors, self._dtype)
        self.refused.update({keys[row]: reason for row, reason in reasons.items()})
        if reasons:
            stored = np.delete(stored, list(reasons), axis=0)
            keys = [key for row, key in enumerate(keys) if row not in reasons]
        self._window, self._window_bytes = {}, 0
        if not self._done:
            self._opened = began
        if keys:
            self._done.append((keys, stored))  # as one step: an interrupt leaves both or none
        self._done_keys.update(keys)
        self.encoded += len(keys)
        self._nbytes += stored.nbytes
        self._adapt(time.monotonic() - began)
        limits = self._limits
        if (
            len(self._done_keys) >= limits.shard_rows
            or self._nbytes >= limits.shard_bytes
            or self._age() >= limits.shard_seconds
        ):
            self.keep()
        if self._tick:
            self._tick()

    def _age(self) -> float:
        return time.monotonic() - self._opened

    def _adapt(self, seconds: float) -> None:
        # small windows for slow encoders, so that a kill loses little; large ones for fast encoders, so that batches sort well
        if seconds > self._limits.window_seconds:
            self._window_rows = max(64, self._window_rows // 2)
        elif seconds < self._limits.window_seconds / 3:
            self._window_rows = min(self._limits.window_rows, self._window_rows * 2)


def _as_stored(vectors: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], dict[int, str]]:
    """The vectors in their stored dtype, and by row the reason why one cannot be stored."""
    finite = np.isfinite(vectors).all(axis=1)
    with np.errstate(over="ignore"):
        stored = vectors.astype(dtype)
    overflowed = finite & ~np.isfinite(stored).all(axis=1)
    reasons = {int(row): "the encoder returned NaN or infinity" for row in np.flatnonzero(~finite)}
    reasons |= {int(row): f"its vector exceeds {dtype.name}; set dtype: float32" for row in np.flatnonzero(overflowed)}
    return stored, reasons
