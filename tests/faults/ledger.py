"""What a process that may be killed has done so far: in mapped memory, so that noting it makes no system call and outlives a death."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from cachestore.keys import SIZE, Key

_HEAD = struct.Struct("<QQQ")
_ROOM = 1 << 20


class Ledger:
    """Payloads encoded, keys committed and whether a build ended, of one process. Any other may read it at any time."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if os.fstat(descriptor).st_size == 0:
            os.ftruncate(descriptor, _ROOM)
        self._map = mmap.mmap(descriptor, _ROOM)
        os.close(descriptor)

    def encoded(self, count: int) -> None:
        encoded, committed, named = self._head()
        _HEAD.pack_into(self._map, 0, encoded + count, committed, named)

    def committed(self, keys: Sequence[Key]) -> None:
        encoded, committed, named = self._head()
        at = _HEAD.size + committed * SIZE
        self._map[at : at + len(keys) * SIZE] = b"".join(keys)
        _HEAD.pack_into(self._map, 0, encoded, committed + len(keys), named)  # last: a key counts when it is whole

    def named(self) -> None:
        encoded, committed, named = self._head()
        _HEAD.pack_into(self._map, 0, encoded, committed, named + 1)

    def facts(self) -> tuple[int, list[Key], int]:
        """Payloads encoded, keys committed, names pointed."""
        encoded, committed, named = self._head()
        data = self._map[_HEAD.size : _HEAD.size + committed * SIZE]
        return encoded, [Key(data[at : at + SIZE]) for at in range(0, len(data), SIZE)], named

    def _head(self) -> tuple[int, int, int]:
        return _HEAD.unpack_from(self._map)


def read(paths: Iterable[Path]) -> tuple[int, set[Key], int]:
    """The ledgers of several processes together."""
    facts = [Ledger(path).facts() for path in paths]
    return (
        sum(encoded for encoded, _, _ in facts),
        {key for _, keys, _ in facts for key in keys},
        sum(named for _, _, named in facts),
    )
