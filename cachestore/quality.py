"""What the vectors of an encoder are like: lengths, repeats, dimensions that say nothing. Looks at a sample or at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from cachestore import shard
from cachestore.index import ShardEntry

_BLOCK_BYTES: Final = 32 << 20


@dataclass(frozen=True)
class Quality:
    """What a sample of an encoder's vectors is like; ``rows`` were looked at."""

    rows: int
    norm_min: float | None
    """None where no vector is finite"""
    norm_median: float | None
    norm_max: float | None
    zeros: int
    """vectors of nothing but zeros"""
    duplicates: float
    """share of vectors equal to another one of the sample, all but the first of each"""
    dead: int | None
    """dimensions with one value in all vectors; None for fewer than two"""
    not_finite: int
    """vectors with NaN or infinity"""


def quality(root: Path, entries: Sequence[ShardEntry], sample: int, seed: int = 0) -> Quality:
    """Look at ``sample`` rows of those shards of one encoder, drawn with ``seed``, or at all where 0 or no more are asked for.

    Raises DamageError for a row that fails its check.
    """
    total = sum(entry.rows for entry in entries)
    drawn = None
    if 0 < sample < total:
        drawn = np.sort(np.random.default_rng(seed).choice(total, sample, replace=False))
    norms, digests = [np.empty(0, np.float32)], [np.empty(0, np.uint64)]
    lowest: NDArray[Any] | None = None
    highest: NDArray[Any] | None = None
    rows = not_finite = 0
    for block in _blocks(root, entries, drawn):
        rows += len(block)
        data = [row.tobytes() for row in block]
        digests.append(np.fromiter(map(xxhash.xxh3_64_intdigest, data), np.uint64, len(data)))
        finite = block[np.isfinite(block).all(axis=1)].astype(np.float32)
        not_finite += len(block) - len(finite)
        if len(finite):
            norms.append(np.sqrt(np.einsum("rd,rd->r", finite, finite, dtype=np.float64)).astype(np.float32))
            low, high = finite.min(axis=0), finite.max(axis=0)
            lowest = low if lowest is None else np.minimum(lowest, low)
            highest = high if highest is None else np.maximum(highest, high)
    lengths = np.concatenate(norms)
    return Quality(
        rows=rows,
        norm_min=float(lengths.min()) if len(lengths) else None,
        norm_median=float(np.median(lengths)) if len(lengths) else None,
        norm_max=float(lengths.max()) if len(lengths) else None,
        zeros=int((lengths == 0).sum()),
        duplicates=1 - len(np.unique(np.concatenate(digests))) / rows if rows else 0.0,
        dead=int((lowest == highest).sum()) if lowest is not None and len(lengths) > 1 else None,
        not_finite=not_finite,
    )


def _blocks(root: Path, entries: Sequence[ShardEntry], drawn: NDArray[np.int64] | None) -> Iterator[NDArray[Any]]:
    """The vectors (n, dim) of all rows of the shards one after the other, or of those ``drawn``, sorted, in blocks."""
    first = 0
    for entry in entries:
        if drawn is None:
            rows = np.arange(entry.rows)
        else:
            rows = drawn[np.searchsorted(drawn, first) : np.searchsorted(drawn, first + entry.rows)] - first
        first += entry.rows
        if not len(rows):
            continue
        found = shard.open_shard(root, entry.name)
        step = max(1, _BLOCK_BYTES // (found.vectors.shape[1] * 4))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            yield found.take(part, found.keys[part])
