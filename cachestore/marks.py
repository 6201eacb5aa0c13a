"""Finding keys among many: a table of all indexed keys, to mark those that manifests name, and keys to look for in files.

The table compares the first eight bytes of keys, and marks keys that share them together. So a collection may keep a vector that
nothing needs, and never loses one that something needs. That any two of 10⁹ keys share eight bytes has odds of 1 to 40.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Set
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

from cachestore import files
from cachestore import manifest as manifests
from cachestore.index import Index
from cachestore.keys import SIZE, prefixes
from cachestore.manifest import PRESENT, Manifest

_ROOM = 1 << 16
_PREFIX = 8
_SEARCHED = 1 << 20  # bytes of a file that are searched at a time


@final
class Table:
    """All indexed keys in their order, 16 bytes each: ``prefixes`` (n,) uint64, ``shards`` (n,) int32, ``rows`` (n,) uint32."""

    def __init__(self, index: Index) -> None:
        self.prefixes = np.empty(0, np.uint64)
        self.shards = np.empty(0, np.int32)
        self.rows = np.empty(0, np.uint32)
        size = 0
        for keys, places in index.entries():
            self._make_room(size + len(keys))
            block = slice(size, size + len(keys))
            self.prefixes[block] = prefixes(keys)
            self.shards[block], self.rows[block] = places.shards, places.rows
            size += len(keys)
        self.prefixes, self.shards, self.rows = self.prefixes[:size], self.shards[:size], self.rows[:size]

    def __len__(self) -> int:
        return len(self.prefixes)

    def marks(self) -> NDArray[np.bool_]:
        """Marks (n,), none set."""
        return np.zeros(len(self), np.bool_)

    def places(self, keys: NDArray[np.void]) -> NDArray[np.int64]:
        """Where keys (m,) stand in the table, in no order; those it does not have are left out."""
        wanted = np.sort(prefixes(keys))
        places = np.searchsorted(self.prefixes, wanted)
        inside = places < len(self)
        places, wanted = places[inside], wanted[inside]
        found: NDArray[np.int64] = places[self.prefixes[places] == wanted]
        run = found
        while len(run):  # the next one may share its prefix
            run = run[run + 1 < len(self)] + 1
            run = run[self.prefixes[run] == self.prefixes[run - 1]]
            found = np.concatenate([found, run])
        return found

    def counts(self, chosen: NDArray[np.bool_], numbers: int) -> NDArray[np.int64]:
        """How many of the chosen (n,) keys lie in each shard (numbers,)."""
        counts: NDArray[np.int64] = np.bincount(self.shards[chosen], minlength=numbers)
        return counts

    def _make_room(self, size: int) -> None:
        if size > len(self.prefixes):
            room = max(_ROOM, size, len(self.prefixes) * 3 // 2)
            # in place: a copy would need the memory twice
            for column in (self.prefixes, self.shards, self.rows):
                column.resize(room, refcheck=False)


@final
class Wanted:
    """Keys to look for among others; ``keys`` (n,) is sorted and distinct."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self.members = frozenset(keys)
        self.keys = np.frombuffer(b"".join(sorted(self.members)), f"V{SIZE}")
        self._prefixes = prefixes(self.keys)

    def among(self, keys: NDArray[np.void]) -> NDArray[np.int64]:
        """The positions in keys (m,) of those that are wanted."""
        near = np.flatnonzero(_held(self._prefixes, prefixes(keys)))
        return near[[each.tobytes() in self.members for each in keys[near]]] if len(near) else near

    def inside(self, path: Path) -> set[bytes]:
        """Those of them that lie anywhere in the bytes of a file, as they are or in hexadecimal.

        Takes about as long for ten thousand keys as for one.
        """
        try:
            data = np.frombuffer(files.map_file(path), np.uint8)
        except (FileNotFoundError, ValueError):
            return set()
        in_digits = _inside(data, {each.hex().encode() for each in self.members})
        return _inside(data, self.members) | {bytes.fromhex(each.decode()) for each in in_digits}


def _inside(data: NDArray[np.uint8], members: Set[bytes]) -> set[bytes]:
    """Those of some byte strings of the same length, ``_PREFIX`` or more, that data (n,) has at any place."""
    found: set[bytes] = set()
    if not members:
        return found
    width = len(next(iter(members)))
    wanted = np.sort(np.frombuffer(b"".join(each[:_PREFIX] for each in members), ">u8").astype(np.uint64))
    begins = np.zeros(1 << 16, np.bool_)  # which two bytes one of them begins with: most places are told by these
    begins[(wanted >> np.uint64(48)).astype(np.uint16)] = True
    for first in range(0, len(data) - width + 1, _SEARCHED):
        part = data[first : first + _SEARCHED + width - 1]
        count = len(part) - width + 1
        places = np.flatnonzero(begins[part[:count].astype(np.uint16) << 8 | part[1 : count + 1]])
        starts = np.ascontiguousarray(part[places[:, np.newaxis] + np.arange(_PREFIX)]).view(">u8")[:, 0]
        near = places[_held(wanted, starts.astype(np.uint64))]
        found |= {part[place : place + width].tobytes() for place in near.tolist()} & members
    return found


def _held(wanted: NDArray[np.uint64], found: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the found (m,) are among the wanted (n,), which are sorted."""
    if not len(wanted):
        return np.zeros(len(found), np.bool_)
    held: NDArray[np.bool_] = wanted[np.minimum(np.searchsorted(wanted, found), len(wanted) - 1)] == found
    return held


def chunk_keys(root: Path, manifest: Manifest, at: int) -> Iterator[tuple[str, NDArray[np.void], NDArray[np.uint8]]]:
    """(column, keys (rows,), reasons (rows,)) of a manifest's chunk, column by column. Raises DamageError."""
    identity, rows = manifest.chunks[at]
    names = [column.name for column in manifest.columns]
    yield from zip(names, *manifests.read_chunk(root, identity, rows, names), strict=True)


def places_by_chunk(
    root: Path, table: Table, wanted: Iterable[Manifest], known: Container[str] = ()
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """(chunk, places in the table of the keys it names) of the chunks of manifests, each once and leaving out the ``known``.

    Raises DamageError for a chunk that cannot be read.
    """
    seen: set[str] = set()
    for manifest in wanted:
        for at, (identity, _) in enumerate(manifest.chunks):
            if identity not in seen and identity not in known:
                seen.add(identity)
                found = [table.places(keys[reasons == PRESENT]) for _, keys, reasons in chunk_keys(root, manifest, at)]
                yield identity, np.concatenate([*found, np.empty(0, np.int64)])
