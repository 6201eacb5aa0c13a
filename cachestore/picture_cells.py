"""Cells of an image column as payloads: a path to a file, the bytes themselves, or Hugging Face's {bytes, path}.

A payload is the file's bytes: an edited picture has another key, a moved one the same. Files are read by threads, one block of
bounded size ahead of what is encoded.

A file is not read again to know its key: the index remembers the key under each fingerprint by the file's path, size, times, inode
and device. (A key is the SHA-256 of fingerprint and payload, so nothing shorter than the key itself would do, and a digest of
the file would be of no use.) What is remembered only saves time: a file that must be encoded is read, and its key checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, final, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachestore import digests, picture_files
from cachestore.dataset import Cells, SkippedCell, binary_cells
from cachestore.errors import DataError
from cachestore.index import Index
from cachestore.keys import SIZE, Fingerprint, Key, keys
from cachestore.manifest import MISSING, PRESENT, SKIPPED
from cachestore.picture_files import Folder, Unreadable

BLOCK_BYTES: Final = 64 << 20
BLOCK_ROWS: Final = 1024
_THREADS: Final = 8
_REMEMBER: Final = 4096


@dataclass
class _Picture:
    """One cell: what it says, and what came of it."""

    path: bytes = b""
    """as the cell says it; empty for bytes"""
    data: bytes | None = None
    why: str = ""
    place: bytes = b""
    seen: bytes = b""
    size: int = 0
    keys: Sequence[Key] = ()


@final
class Pictures:
    """The cells of one image column of a data set, under the fingerprints of its encoders."""

    def __init__(
        self, column: str, folder: Folder, identities: Sequence[Fingerprint] = (), index: Index | None = None
    ) -> None:
        self.column = column
        self.outside = False
        """whether a cell named a file, so that the data alone does not say what the payloads are"""
        self._folder = folder
        self._identities = tuple(identities)
        self._index = index
        self._fresh: dict[bytes, bytes] = {}

    def find(self, batch: pa.RecordBatch, pool: ThreadPoolExecutor) -> list[_Picture | None]:
        """What every cell of a batch names, with the keys of files that are remembered. Nothing is read."""
        pictures = _said(batch.column(self.column), self.column)
        named = [picture for picture in pictures if picture is not None and picture.path]
        self.outside |= bool(named)
        for future in _striped(pool, self._place, named):
            future.result()
        self._recall([picture for picture in named if not picture.why])
        return pictures

    def start(self, pictures: Sequence[_Picture | None], pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Have the keys of the cells found, and the files read that are not remembered; wait for what is returned."""
        todo = [picture for picture in pictures if picture is not None and not picture.why and not picture.keys]
        return _striped(pool, self._load_all, todo)

    def cells(self, pictures: Sequence[_Picture | None], first_row: int) -> Cells:
        """The cells after they were read."""
        reasons = np.full(len(pictures), PRESENT, np.uint8)
        skipped = []
        named: dict[Fingerprint, list[Key | None]] = {identity: [] for identity in self._identities}
        for row, picture in enumerate(pictures):
            if picture is None:
                reasons[row] = MISSING
            elif picture.why:
                reasons[row] = SKIPPED
                skipped.append(SkippedCell(first_row + row, self.column, picture_files.told(picture.path, picture.why)))
            given = picture is not None and not picture.why
            for at, identity in enumerate(self._identities):
                named[identity].append(picture.keys[at] if picture is not None and given else None)
        self._remember(pictures)
        return Cells(_Payloads(pictures, self._identities), reasons, skipped, named)

    def close(self) -> None:
        """Remember what is left to remember."""
        if self._index is not None and self._fresh:
            self._index.remember_all(self._fresh)
        self._fresh = {}

    def _place(self, pictures: Iterable[_Picture]) -> None:
        for picture in pictures:
            try:
                picture.place, status = self._folder.find(picture.path)
            except Unreadable as error:
                picture.why = str(error)
                continue
            picture.size, picture.seen = status.st_size, digests.seen(status)

    def _recall(self, pictures: Sequence[_Picture]) -> None:
        if self._index is None or not self._identities or not pictures:
            return
        count = len(self._identities)
        facts = self._index.recall_all(
            [_memo(identity, picture.place) for picture in pictures for identity in self._identities]
        )
        for at, picture in enumerate(pictures):
            size = len(picture.seen)
            found = [
                Key(fact[size:])
                for fact in facts[at * count : (at + 1) * count]
                if fact is not None and fact[:size] == picture.seen and len(fact) == size + SIZE
            ]
            picture.keys = found if len(found) == count else ()

    def _load_all(self, pictures: Iterable[_Picture]) -> None:
        for picture in pictures:
            if picture.data is None:
                try:
                    picture.data, status = picture_files.read(picture.place)
                except Unreadable as error:
                    picture.why = str(error)
                    continue
                picture.seen = digests.seen(status) if digests.settled(status) else b""
            picture.keys = [key for identity in self._identities for key in keys(identity, [picture.data]) if key]

    def _remember(self, pictures: Iterable[_Picture | None]) -> None:
        if self._index is None or self._index.readonly:
            return
        for picture in pictures:
            if picture is not None and picture.path and picture.data is not None and picture.seen:
                for identity, key in zip(self._identities, picture.keys, strict=True):
                    self._fresh[_memo(identity, picture.place)] = picture.seen + key
        if len(self._fresh) >= _REMEMBER:
            self.close()


@final
class _Payloads(Sequence[bytes | None]):
    """The bytes of the pictures; a file whose key was remembered is read when it is asked for."""

    def __init__(self, pictures: Sequence[_Picture | None], identities: Sequence[Fingerprint]) -> None:
        self._pictures = pictures
        self._identities = identities

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, row: int) -> bytes | None: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[bytes | None]: ...
    def __getitem__(self, row: int | slice) -> bytes | Sequence[bytes | None] | None:
        if isinstance(row, slice):
            return _Payloads(self._pictures[row], self._identities)
        picture = self._pictures[row]
        if picture is None or picture.why:
            return None
        return picture.data if picture.data is not None else self._read(picture)

    def _read(self, picture: _Picture) -> bytes:
        try:
            data, _ = picture_files.read(picture.place)
        except Unreadable:
            data = b""
        if not data or keys(self._identities[0], [data])[0] != picture.keys[0]:
            raise DataError(
                f"{picture_files.shown(picture.path)} changed while it was read. Run again; what was encoded is kept."
            )
        return data


@dataclass(frozen=True)
class Block:
    """Rows of a batch whose pictures are read together."""

    batch: pa.RecordBatch
    found: Mapping[str, Sequence[_Picture | None]]
    reading: list[Future[None]] = field(default_factory=list)


def blocks(
    batches: Iterable[pa.RecordBatch], columns: Mapping[str, Pictures], pool: ThreadPoolExecutor
) -> Iterator[Block]:
    """The rows in blocks of at most BLOCK_ROWS rows and, down to one row, BLOCK_BYTES of files to read; the next one is read meanwhile."""
    ahead: Block | None = None
    for batch in batches:
        for start in range(0, batch.num_rows, BLOCK_ROWS):
            for block in _cut(batch.slice(start, BLOCK_ROWS), columns, pool):
                for name, found in block.found.items():
                    block.reading.extend(columns[name].start(found, pool))
                if ahead is not None:
                    yield _waited(ahead)
                ahead = block
    if ahead is not None:
        yield _waited(ahead)


def read_cells(batch: pa.RecordBatch, column: str, first_row: int, folder: Folder) -> Cells:
    """The cells of a small batch, read at once."""
    pictures = Pictures(column, folder)
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pictures.find(batch, pool)
        for future in pictures.start(found, pool):
            future.result()
    return pictures.cells(found, first_row)


def pool() -> ThreadPoolExecutor:
    """The threads that read pictures."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="pictures")


def _waited(block: Block) -> Block:
    for future in block.reading:
        future.result()
    return block


def _cut(batch: pa.RecordBatch, columns: Mapping[str, Pictures], pool: ThreadPoolExecutor) -> Iterator[Block]:
    found = {name: pictures.find(batch, pool) for name, pictures in columns.items()}
    sizes: NDArray[np.int64] = np.zeros(batch.num_rows, np.int64)
    for pictures in found.values():
        sizes += [0 if picture is None or picture.keys else picture.size for picture in pictures]
    start = taken = 0
    for row, size in enumerate(sizes.tolist()):
        if row > start and taken + size > BLOCK_BYTES:
            yield Block(batch.slice(start, row - start), {name: cells[start:row] for name, cells in found.items()})
            start, taken = row, 0
        taken += size
    yield Block(batch.slice(start), {name: cells[start:] for name, cells in found.items()})


def _said(array: pa.Array, column: str) -> list[_Picture | None]:
    """What the cells of a column hold, with their type alone to tell a path from bytes."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _said(array.dictionary_decode(), column)
    rows = len(array)
    data: Sequence[bytes | None] = [None] * rows
    paths: Sequence[bytes | None] = [None] * rows
    if pa.types.is_struct(kind) and {"bytes", "path"} & {one.name for one in kind}:
        parts = dict(zip([one.name for one in kind], array.flatten(), strict=True))
        data = binary_cells(parts["bytes"], column).to_pylist() if "bytes" in parts else data
        paths = binary_cells(parts["path"], column).to_pylist() if "path" in parts else paths
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        paths = binary_cells(array, column).to_pylist()
    elif not pa.types.is_null(kind):
        if not any(test(kind) for test in _BYTES):
            raise DataError(
                f"Column {column!r} has type {kind}, not pictures. Name a column of paths, of bytes, or of {{bytes, path}}."
            )
        data = binary_cells(array, column).to_pylist()
    return [_picture(*given) for given in zip(data, paths, strict=True)]


_BYTES = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def _picture(data: bytes | None, path: bytes | None) -> _Picture | None:
    if data is None:
        if path is None:
            return None
        return _Picture(path) if path else _Picture(why="is an empty path")
    if not data:
        return _Picture(why="is empty: 0 bytes")
    if len(data) > picture_files.MAX_BYTES:
        return _Picture(why=picture_files.too_large(len(data)))
    return _Picture(data=data)


def _memo(identity: Fingerprint, place: bytes) -> bytes:
    return b"picture:" + sha256(identity + place).digest()


def _striped(
    pool: ThreadPoolExecutor, work: Callable[[Sequence[_Picture]], None], pictures: Sequence[_Picture]
) -> list[Future[None]]:
    # a future for each picture would cost more than the call
    return [pool.submit(work, pictures[at::_THREADS]) for at in range(min(_THREADS, len(pictures)))]
