"""One pass for several encoders that share weights: what one of them encodes is encoded for the others on the way.

Each keeps what was computed for it until it asks for it. What it never asks for, because the store has it, is forgotten
when there is too much of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cachestore.encoders import Encoded, Encoder
from cachestore.keys import Json

_KEPT_BYTES = 64 << 20  # of each encoder


@runtime_checkable
class Sharing(Protocol):
    """An encoder that can encode for others of the same ``share`` in one pass."""

    @property
    def share(self) -> Hashable:
        """Equal for encoders that share weights and preparation; None for one that stands alone."""

    def encode_for(self, encoders: Sequence[Any], payloads: Sequence[bytes]) -> Sequence[NDArray[np.float32] | Encoded]:
        """What each of ``encoders``, which have the same ``share``, gives for the payloads."""


def together(encoders: Sequence[Encoder]) -> list[Encoder]:
    """The encoders, in their order, those that share weights joined."""
    groups: dict[Hashable, list[Encoder]] = {}
    for encoder in encoders:
        if isinstance(encoder, Sharing) and encoder.share is not None:
            groups.setdefault(encoder.share, []).append(encoder)
    joined: dict[int, Encoder] = {}
    for group in groups.values():
        if len(group) > 1:
            shared = _Group(group)
            joined |= {id(encoder): _Member(encoder, shared, at) for at, encoder in enumerate(group)}
    return [joined.get(id(encoder), encoder) for encoder in encoders]


class _Member:
    """One of several encoders that share weights; an Encoder itself."""

    def __init__(self, encoder: Encoder, group: _Group, at: int) -> None:
        self.spec: Mapping[str, Json] = encoder.spec
        self.dim = encoder.dim
        self._group = group
        self._at = at

    def encode(self, payloads: Sequence[bytes]) -> Encoded:
        return self._group.encode(self._at, payloads)


class _Group:
    def __init__(self, encoders: Sequence[Any]) -> None:
        self._encoders = encoders
        self._kept: list[dict[bytes, NDArray[np.float32] | str]] = [{} for _ in encoders]

    def encode(self, at: int, payloads: Sequence[bytes]) -> Encoded:
        names = [sha256(payload).digest() for payload in payloads]
        kept = self._kept[at]
        new = {name: payload for name, payload in zip(names, payloads, strict=True) if name not in kept}
        if new:
            found = self._encoders[at].encode_for(self._encoders, list(new.values()))
            for held, returned in zip(self._kept, found, strict=True):
                vectors, refused = returned if isinstance(returned, Encoded) else (returned, {})
                held.update({name: refused.get(row, vectors[row]) for row, name in enumerate(new)})
        dim = self._encoders[at].dim
        answers = {name: kept.pop(name) for name in dict.fromkeys(names)}
        vectors = np.zeros((len(names), dim), np.float32)
        reasons: dict[int, str] = {}
        for row, name in enumerate(names):
            answer = answers[name]
            if isinstance(answer, str):
                reasons[row] = answer
            else:
                vectors[row] = answer
        self._forget()
        return Encoded(vectors, reasons)

    def _forget(self) -> None:
        for held, encoder in zip(self._kept, self._encoders, strict=True):
            for name in list(held)[: max(0, len(held) - max(1, _KEPT_BYTES // (4 * encoder.dim)))]:
                del held[name]
