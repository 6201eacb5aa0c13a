"""Training on more vectors than memory holds: they stay in the store's mapped shards, and blocks of rows are read in turn."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachestore import manifest as stored
from cachestore.errors import ConfigError, MissingVector
from cachestore.index import Locations
from cachestore.manifest import PRESENT, Manifest
from cachestore.shard import stored_dtype
from cachestore.store import Store, open_store
from trainer.batches import Batch, bounds, named, widened

# Of the limit; the rest is for Python, torch, the other columns, the weights and what metrics need. Both depend on the
# limit alone, so that the order of rows does.
_BLOCK: Final = 1 / 8
_IN_MEMORY: Final = 1 / 4
_PIECE: Final = 1 << 23  # bytes; the store copies what it checks several times over
_KEYS: Final = 1 << 16  # looked up at once, which takes some 200 bytes each
_ROW: Final = 48  # bytes of a StoredVectors, twice over while splits are made of it
# rows that stay together when blocks are drawn: reading them one by one would read every page anew
_NEIGHBOURS: Final = 128


def streams(limit: int | None, nbytes: int) -> bool:
    """Whether vectors of ``nbytes`` in all are to stay in the store under a limit of memory."""
    return limit is not None and nbytes > limit * _IN_MEMORY


@final
@dataclass(frozen=True)
class StoredVectors:
    """Vectors (rows, dim) in a store, zeros where there is none: what arrays are elsewhere, but read when they are asked for.

    ``keys``, ``shards`` and ``rows`` by row, shard -1 where there is no vector; 48 bytes a row. A process that is given them opens
    the store for itself.
    """

    store: Store
    keys: NDArray[np.void]
    shards: NDArray[np.int64]
    rows: NDArray[np.int64]
    dim: int
    dtype: np.dtype[Any]
    limit: int

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (str(self.store.root), self.keys, self.shards, self.rows, self.dim, self.dtype, self.limit)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, dim)"""
        return len(self.rows), self.dim

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: NDArray[Any]) -> StoredVectors:
        """The rows of these numbers, or of a mask, still unread."""
        return replace(self, keys=self.keys[places], shards=self.shards[places], rows=self.rows[places])

    def read(self, places: NDArray[np.int64]) -> NDArray[Any]:
        """The vectors (len(places), dim). Raises MissingVector when the store lost one."""
        out = np.zeros((len(places), self.dim), self.dtype)
        step = max(1, _PIECE // (self.dim * self.dtype.itemsize))
        for start in range(0, len(places), step):
            piece, target = places[start : start + step], out[start : start + step]
            there = self.shards[piece] >= 0
            found = piece[there]
            if not len(found):
                continue
            vectors = target if len(found) == len(piece) else np.empty((len(found), self.dim), self.dtype)
            self.store.gather(self.keys[found], Locations(self.shards[found], self.rows[found]), vectors)
            if vectors is not target:
                target[there] = vectors
        return out


def _again(root: str, *rest: Any) -> StoredVectors:
    return StoredVectors(_opened(root), *rest)


@functools.cache
def _opened(root: str) -> Store:
    return open_store(root, mode="r")


def stored_vectors(store: Store, source: Manifest, column: str, limit: int) -> tuple[StoredVectors, NDArray[np.uint8]]:
    """A cached column without reading its vectors, and why each row has one or none, as ``Store.column`` tells it.

    Raises ConfigError when ``limit`` bytes are too few to read blocks, MissingVector where the store lost a vector.
    """
    described = source.column(column)
    used = anonymous_memory() + 2 * _ROW * source.rows
    if used + 2 * limit * _BLOCK > limit:
        least = int(used / (1 - 2 * _BLOCK) / 1e6) + 1
        raise ConfigError(f"trainer.memory_limit: is too little; this data takes at least {least}MB")
    keys, reasons = np.zeros(source.rows, "V32"), np.empty(source.rows, np.uint8)
    shards, rows = np.full(source.rows, -1, np.int64), np.zeros(source.rows, np.int64)
    at = 0
    for chunk_keys, chunk_reasons in stored.read_chunks(store.root, source, column):
        here = slice(at, at + len(chunk_keys))
        keys[here], reasons[here] = chunk_keys, chunk_reasons
        present = np.flatnonzero(chunk_reasons == PRESENT)
        for start in range(0, len(present), _KEYS):
            places = present[start : start + _KEYS]
            found = store.index.lookup(chunk_keys[places].tolist())
            lost = np.flatnonzero(found.shards < 0)
            if len(lost):
                raise MissingVector(
                    f"Data row {at + int(places[lost[0]])} (counted from 0) of column {column!r} has no vector in the store at "
                    f"{store.root}. Build the data set again to encode it."
                )
            shards[at + places], rows[at + places] = found.shards, found.rows
        at += len(chunk_keys)
    dtype = stored_dtype(described.spec)
    return StoredVectors(store, keys, shards, rows, described.dim, dtype, limit), reasons


@final
@dataclass(frozen=True)
class StreamedBatches:
    """Rows as CachedBatches has them, but for ``vectors``, of which no more than a block is in memory at a time.

    The vectors of a batch are overwritten by the next one: tensors of their size, made anew among small ones that stay,
    would leave the heap full of holes. A shuffled pass draws the order of runs of 128 neighbours, reads as many as make a
    block, and draws the order of rows within it: the same for the same generator, limit and batch size.
    """

    vectors: Mapping[str, StoredVectors]
    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    missing: Mapping[str, Tensor] = field(default_factory=dict)
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.vectors.values())))

    def to(self, device: torch.device) -> StreamedBatches:
        """The same rows, in batches on ``device``."""
        groups = (self.inputs, self.targets, self.missing)
        inputs, targets, missing = ({name: tensor.to(device) for name, tensor in each.items()} for each in groups)
        return StreamedBatches(self.vectors, inputs, targets, missing, device)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Every row once, in an order drawn from ``generator``."""
        runs = torch.randperm(-(-self.rows // _NEIGHBOURS), generator=generator)
        order = (runs[:, None] * _NEIGHBOURS + torch.arange(_NEIGHBOURS)).flatten()
        order = order[order < self.rows]
        buffers = self._buffers(batch_size)
        for block in self._blocks(batch_size):
            start, stop = block[0][0], block[-1][1]
            places = order[start:stop]
            drawn = torch.randperm(len(places), generator=generator)
            parts = [drawn[first - start : last - start] for first, last in block]
            yield from self._batches(places, parts, buffers)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, first to last."""
        buffers = self._buffers(batch_size)
        for block in self._blocks(batch_size):
            start, stop = block[0][0], block[-1][1]
            parts = [torch.arange(first - start, last - start) for first, last in block]
            yield from self._batches(torch.arange(start, stop), parts, buffers)

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """What tells these rows from others; vectors by their keys."""
        keys = {
            name: torch.from_numpy(each.keys.view(np.uint8).reshape(len(each), -1))
            for name, each in self.vectors.items()
        }
        return named(vectors=keys, inputs=self.inputs, missing=self.missing, targets=self.targets)

    def _buffers(self, batch_size: int) -> dict[str, tuple[Tensor, Tensor]]:
        """For each input, where the vectors of a batch go as they are stored, and as float32."""
        most = min(batch_size + 1, self.rows)  # a lone last row joins the batch before it
        return {
            name: (torch.from_numpy(np.empty((most, each.dim), each.dtype)), torch.empty(most, each.dim))
            for name, each in self.vectors.items()
        }

    def _blocks(self, batch_size: int) -> Iterator[list[tuple[int, int]]]:
        """The (start, stop) of batches, those together whose vectors make a block."""
        row = sum(vectors.dim * vectors.dtype.itemsize for vectors in self.vectors.values())
        most = int(next(iter(self.vectors.values())).limit * _BLOCK / row)
        block: list[tuple[int, int]] = []
        for start, stop in bounds(self.rows, batch_size):
            if block and stop - block[0][0] > most:
                yield block
                block = []
            block.append((start, stop))
        if block:
            yield block

    def _batches(
        self, places: Tensor, parts: list[Tensor], buffers: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Iterator[Batch]:
        """Batches of the rows ``places``, of which ``parts`` number those of each."""
        sorted_places, back = places.sort()  # in the order of the data, which is about that of the shards
        at = torch.empty_like(back)
        at[back] = torch.arange(len(back))
        block = {name: torch.from_numpy(vectors.read(sorted_places.numpy())) for name, vectors in self.vectors.items()}
        for part in parts:
            rows, here = places[part].to(self.device), at[part]
            vectors = {}
            for name, tensor in block.items():
                kept, single = (buffer[: len(part)] for buffer in buffers[name])
                torch.index_select(tensor, 0, here, out=kept)
                vectors[name] = (single.copy_(kept) if kept.dtype == torch.float16 else kept).to(self.device)
            yield Batch(
                len(part),
                {
                    **vectors,
                    **{name: widened(tensor.index_select(0, rows)) for name, tensor in self.inputs.items()},
                },
                {name: tensor.index_select(0, rows) for name, tensor in self.missing.items()},
                {name: tensor.index_select(0, rows) for name, tensor in self.targets.items()},
            )


def anonymous_memory() -> int:
    """Bytes of memory that this process holds itself: not what it maps from files, which the system may take back."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")
