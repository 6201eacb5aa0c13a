"""Reading vectors: from their places in the index to copies in memory, each checked."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore import shard
from cachestore.errors import DamageError, MissingVector
from cachestore.index import Index, Locations

_MAPPED_SHARDS = 16  # each mapping holds a file descriptor


class Mapped:
    """The shards of a store that are mapped, the least recently used of which are let go."""

    def __init__(self, root: Path, index: Index) -> None:
        self.root = root
        self.index = index
        self._mapped: OrderedDict[str, shard.Shard] = OrderedDict()

    def release(self) -> None:
        """Let go of all."""
        self._mapped.clear()

    def gather(self, wanted: NDArray[np.void], found: Locations, out: NDArray[Any]) -> None:
        """Copy the vectors of keys (n,) at their locations into ``out`` (n, dim), each checked against its key and its check.

        A vector that was moved since its place was looked up is looked up once more. Raises MissingVector when it has no place.
        """
        for rows, error in self._gather(wanted, found, out):
            again = self.index.lookup(wanted[rows].tolist())
            lost = int((again.shards < 0).sum())
            if lost:
                raise MissingVector(
                    f"{lost} vectors are no longer in the store at {self.root}. Build their data set again to encode them."
                )
            moved = (again.shards != found.shards[rows]) | (again.rows != found.rows[rows])
            if error is not None and not moved.any():
                raise error
            part = np.empty((len(rows), out.shape[1]), out.dtype)
            for _, failed in self._gather(wanted[rows], again, part):
                raise failed or MissingVector(
                    f"Vectors were removed from the store at {self.root} while they were read. Run again."
                )
            out[rows] = part

    def _gather(
        self, wanted: NDArray[np.void], found: Locations, out: NDArray[Any]
    ) -> list[tuple[NDArray[np.int64], DamageError | None]]:
        """Copy what can be had; returns the positions of the rest, shard by shard, with the error where there is one."""
        order = np.argsort(found.shards, kind="stable")
        numbers, starts = np.unique(found.shards[order], return_index=True)
        names = self.index.names(number for number in numbers.tolist() if number >= 0)
        failed: list[tuple[NDArray[np.int64], DamageError | None]] = []
        for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]) if len(order) else [], strict=True):
            if number not in names:
                failed.append((rows, None))
                continue
            try:
                mapped = self._shard(names[number])
                if (mapped.vectors.shape[1], mapped.vectors.dtype) != (out.shape[1], out.dtype):
                    raise DamageError(
                        f"Shard {mapped.name} holds vectors of {mapped.vectors.shape[1]} {mapped.vectors.dtype.name}, not of "
                        f"{out.shape[1]} {out.dtype.name}: what leads to them is not of their encoder."
                    )
                out[rows] = mapped.take(found.rows[rows], wanted[rows])
            except DamageError as error:
                failed.append((rows, error))
        return failed

    def _shard(self, name: str) -> shard.Shard:
        mapped = self._mapped.pop(name, None) or shard.open_shard(self.root, name)
        self._mapped[name] = mapped
        if len(self._mapped) > _MAPPED_SHARDS:
            self._mapped.popitem(last=False)
        return mapped
