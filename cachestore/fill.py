"""Encoding what a store lacks: payloads of one encoder go in, durable shards come out.

Payloads are encoded in windows and their vectors collected until a shard is full or old enough, so a killed process loses
at most one shard's work. A vector that cannot be stored truthfully (not finite, beyond float16) is refused with its reason.

A window is claimed before it is encoded. What another writer has claimed is put off, and waited for at the end; before it waits,
a Fill stores what it has and gives up its claims, so that writers never wait for each other in a circle.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cachestore.claims import Claims
from cachestore.encoders import Encoded, Encoder
from cachestore.errors import EncoderError, StoreError
from cachestore.keys import Key

_FIRST_PAUSE, _LAST_PAUSE = 0.005, 0.05
_LOOK_AGAIN_SECONDS, _ALIVE_SECONDS = 2.0, 0.1

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
    put_off_rows: int = 1 << 16
    put_off_bytes: int = 64 << 20
    claim_seconds: float = 300.0
    """how long to wait for another writer that stores nothing, before its keys are encoded here as well"""


class Fill:
    """Collects distinct unknown payloads of one encoder, encodes them window by window and puts their vectors.

    A context manager. What is encoded is stored also when its body fails, unless it is the store that fails.
    """

    def __init__(
        self,
        encoder: Encoder,
        dtype: np.dtype[Any],
        put: Put,
        claims: Claims,
        limits: Limits = Limits(),
        tick: Callable[[], None] | None = None,
    ) -> None:
        self.encoder = encoder
        self.refused: dict[Key, str] = {}
        """Keys whose vector could not be stored, with the reason."""
        self.encoded = 0
        self.found = 0
        """keys that another writer stored after they were looked up"""
        self.bytes_written = 0
        self.shards: set[int] = set()
        """Numbers of the shards written."""
        self._dtype = dtype
        self._put = put
        self._claims = claims
        self._limits = limits
        self._tick = tick
        self._window: dict[Key, bytes] = {}
        self._window_bytes = 0
        self._window_rows = min(256, limits.window_rows)
        self._put_off: dict[bytes, dict[Key, bytes]] = {}
        """payloads that another writer encodes, by writer"""
        self._done: list[tuple[list[Key], NDArray[Any]]] = []
        self._done_keys: set[Key] = set()
        self._nbytes = 0
        self._opened = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, StoreError):
            with contextlib.suppress(StoreError):  # what failed first is what the user should hear of
                self._claims.close()
            return
        try:
            self.keep()
        finally:
            self._claims.close()

    @property
    def waiting(self) -> int:
        """How many payloads another writer encodes."""
        return sum(map(len, self._put_off.values()))

    @property
    def crowded(self) -> bool:
        """Whether so many payloads are put off that it is time to ``settle``."""
        nbytes = sum(sum(map(len, payloads.values())) for payloads in self._put_off.values())
        return self.waiting >= self._limits.put_off_rows or nbytes >= self._limits.put_off_bytes

    def add(self, payloads: Mapping[Key, bytes]) -> None:
        """Take payloads to encode, by keys that were looked up and not stored; what is on its way or refused is passed over."""
        held = (self._window, self._done_keys, self.refused, *self._put_off.values())
        passed = {key for keys in held for key in payloads.keys() & keys}
        fresh = {key: payload for key, payload in payloads.items() if key not in passed} if passed else payloads
        waiting = iter(fresh.items())
        while part := dict(itertools.islice(waiting, max(1, self._window_rows - len(self._window)))):
            nbytes = sum(map(len, part.values()))
            if self._window_bytes + nbytes < self._limits.window_bytes:
                self._window.update(part)
                self._window_bytes += nbytes
                if len(self._window) >= self._window_rows:
                    self._encode_window()
                continue
            for key, payload in part.items():
                self._window[key] = payload
                self._window_bytes += len(payload)
                if len(self._window) >= self._window_rows or self._window_bytes >= self._limits.window_bytes:
                    self._encode_window()

    def flush(self) -> None:
        """Encode and store everything taken so far but what is put off, and give up all claims."""
        if self._window:
            self._encode_window()
        self.yield_claims()

    def yield_claims(self) -> None:
        """Store what is encoded, so that nobody waits for this writer; payloads not encoded yet are left."""
        self.keep()
        self._claims.release()  # refused ones have no shard to end their claim

    def settle(self) -> None:
        """Wait until what was put off is stored; what its writer died over, or stored for too long, is encoded here.

        Call it after ``flush``, of all fills of this process: a writer that waits must hold no claims.
        """
        began = time.monotonic()
        while self._put_off:
            before = self.waiting
            writers = self._await()
            if time.monotonic() - began > self._limits.claim_seconds:
                self._resolve(list(self._put_off), force=True)
            else:
                self._resolve(writers)
            if self.waiting < before:
                began = time.monotonic()
            if self._tick:
                self._tick()

    def keep(self) -> None:
        """Store what is encoded; payloads still waiting to be encoded are left."""
        done, self._done, self._done_keys, self._nbytes = self._done, [], set(), 0
        if done:
            number, nbytes = self._put(
                [key for keys, _ in done for key in keys], np.concatenate([rows for _, rows in done])
            )
            self.shards.add(number)
            self.bytes_written += nbytes

    def _encode_window(self) -> None:
        window, self._window, self._window_bytes = self._window, {}, 0
        if mine := self._claim(window):
            self._encode(mine)
        else:
            self._window_rows = min(self._limits.window_rows, self._window_rows * 4)  # get past what others do quickly

    def _claim(self, window: Mapping[Key, bytes], *, force: bool = False) -> Mapping[Key, bytes]:
        """What of the window is to be encoded here; what another writer encodes is put off."""
        taken = self._claims.take(list(window), force=force)
        self.found += len(taken.stored)
        self._wait_for(taken.others, window)
        if len(taken.mine) == len(window):
            return window
        return {key: payload for key, payload in window.items() if key in taken.mine}

    def _resolve(self, writers: Sequence[bytes], force: bool = False) -> None:
        """Take what became free of what is put off for these writers, and encode it."""
        payloads: dict[Key, bytes] = {}
        for writer in writers:
            payloads |= self._put_off.pop(writer)
        # window by window: a shard that gets full on the way ends all claims
        waiting = iter(payloads.items())
        while window := dict(itertools.islice(waiting, self._limits.window_rows)):
            if mine := self._claim(window, force=force):
                self._encode(mine)
        self.yield_claims()

    def _wait_for(self, others: Mapping[bytes, set[Key]], window: Mapping[Key, bytes]) -> None:
        for writer, keys in others.items():
            self._put_off.setdefault(writer, {}).update({key: window[key] for key in keys})

    def _await(self) -> list[bytes]:
        """Wait until writers stored something or died, and return those; after some seconds, return all that are waited for."""
        probes = {writer: next(iter(keys)) for writer, keys in self._put_off.items()}
        now = seen_alive = time.monotonic()
        deadline, version, pause = now + _LOOK_AGAIN_SECONDS, -1, _FIRST_PAUSE
        while (now := time.monotonic()) < deadline:
            ready: set[bytes] = set()
            version, seen = self._claims.version(), version
            if version != seen:
                ready.update(itertools.compress(probes, self._claims.stored(list(probes.values()))))
            if now - seen_alive > _ALIVE_SECONDS:
                seen_alive = now
                ready.update(writer for writer in probes if not self._claims.lives(writer))
            if ready:
                return list(ready)
            time.sleep(pause)
            pause = min(pause * 1.5, _LAST_PAUSE)
        return list(probes)

    def _encode(self, window: Mapping[Key, bytes]) -> None:
        began = time.monotonic()
        keys, payloads = list(window), list(window.values())
        returned = self.encoder.encode(payloads)
        vectors, refused = returned if isinstance(returned, Encoded) else (returned, {})
        vectors = _as_numbers(vectors)
        if vectors.shape != (len(payloads), self.encoder.dim):
            raise EncoderError(
                f"The encoder returned an array of shape {vectors.shape} for {len(payloads)} payloads of dimension {self.encoder.dim}. "
                "It must return one vector per payload, in order; nothing of this batch was stored."
            )
        stored, reasons = _as_stored(vectors, self._dtype)
        reasons |= refused
        self.refused.update({keys[row]: reason for row, reason in reasons.items()})
        if reasons:
            stored = np.delete(stored, list(reasons), axis=0)
            keys = [key for row, key in enumerate(keys) if row not in reasons]
        if not self._done:
            self._opened = began
        if keys:
            self._done.append((keys, stored))  # as one step: an interrupt leaves both or none
        self._done_keys.update(keys)
        self.encoded += len(keys)
        self._nbytes += stored.nbytes
        self._adapt(len(payloads), time.monotonic() - began)
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

    def _adapt(self, rows: int, seconds: float) -> None:
        # small windows for slow encoders, so that a kill loses little; large ones for fast encoders, so that batches sort well
        if seconds > self._limits.window_seconds:
            self._window_rows = max(64, self._window_rows // 2)
        elif rows >= self._window_rows // 2 and seconds < self._limits.window_seconds / 3:
            self._window_rows = min(self._limits.window_rows, self._window_rows * 2)


def _as_numbers(returned: object) -> NDArray[Any]:
    """What an encoder returned, as an array of real numbers."""
    try:
        vectors = np.asarray(returned)
    except ValueError as error:  # lists of several lengths
        raise EncoderError(f"The encoder returned no array ({error}); nothing of this batch was stored.") from error
    if vectors.dtype.kind not in "fiub":
        raise EncoderError(
            f"The encoder returned an array of {vectors.dtype.name}. It must return numbers; nothing of this batch was stored."
        )
    return vectors


def _as_stored(vectors: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], dict[int, str]]:
    """The vectors in their stored dtype, and by row the reason why one cannot be stored."""
    with np.errstate(over="ignore"):
        stored = np.array(vectors, dtype, order="C")  # a copy: an encoder may use its buffer again
    # without its sign bit, a number with this bit pattern or a higher one is an infinity or NaN; a tenth of isfinite's time
    bits, infinite = (np.uint16, 0xF800) if dtype.itemsize == 2 else (np.uint32, 0xFF000000)
    highest = np.left_shift(stored.view(bits), 1).max(axis=1, initial=0)
    reasons: dict[int, str] = {}
    for row in np.flatnonzero(highest >= infinite).tolist():
        finite = np.isfinite(vectors[row]).all()
        why = (
            f"its vector exceeds {dtype.name}; set dtype: float32" if finite else "the encoder returned NaN or infinity"
        )
        reasons[row] = why
    for row in np.flatnonzero(highest == 0).tolist():
        if vectors[row].any():  # a vector of zeros may be what the encoder means
            reasons[row] = f"its vector is zero in {dtype.name}; set dtype: float32"
    return stored, reasons
