"""Plan: what a build would do, without doing it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cachestore.build import Counts, open_columns
from cachestore.dataset import payloads
from cachestore.encoders import Encoder, EncoderLike, open_encoder
from cachestore.keys import SIZE, Fingerprint, Key, fingerprint, keys
from cachestore.manifest import MISSING, SKIPPED
from cachestore.shard import stored_dtype
from cachestore.store import Store

_SAMPLE = 64


@dataclass(frozen=True)
class Plan:
    """What a build would do; ``seconds`` is estimated from encoding a small sample, None when nothing is to be encoded."""

    counts: Counts
    """``encoded`` counts what would be encoded"""
    seconds: float | None
    nbytes: int
    """of the shards it would write"""


def plan(store: Store | None, data: Any, columns: Mapping[str, EncoderLike]) -> Plan:
    """What ``run`` would do on this store, or on an empty one. Writes nothing; encodes a sample of at most 64 payloads to time it."""
    dataset = open_columns(data, columns)
    open_one = store.open_encoder if store else open_encoder
    opened = {column: open_one(encoder) for column, encoder in columns.items()}
    identities = {column: fingerprint(encoder.spec) for column, encoder in opened.items()}
    rows = hits = missing = skipped = 0
    lacking: dict[Fingerprint, set[Key]] = {}
    samples: dict[Fingerprint, list[bytes]] = {}
    for batch in dataset.batches(list(opened)):
        for column, identity in identities.items():
            cells = payloads(batch, column, rows)
            names = keys(identity, cells.payloads)
            missing += int((cells.reasons == MISSING).sum())
            skipped += int((cells.reasons == SKIPPED).sum())
            found = store.index.lookup(names).shards >= 0 if store else np.zeros(len(names), np.bool_)
            hits += int(found.sum())
            unknown, sample = lacking.setdefault(identity, set()), samples.setdefault(identity, [])
            for key, payload, known in zip(names, cells.payloads, found.tolist(), strict=True):
                if key is not None and payload is not None and not known and key not in unknown:
                    unknown.add(key)
                    # the first rows of a file are often alike: keep a sample spread over powers of two
                    if len(sample) < _SAMPLE or len(unknown) & (len(unknown) - 1) == 0:
                        sample.append(payload)
        rows += batch.num_rows
    to_encode = sum(len(unknown) for unknown in lacking.values())
    duplicates = rows * len(opened) - hits - to_encode - missing - skipped
    by_identity = {identities[column]: encoder for column, encoder in opened.items()}
    seconds, nbytes = 0.0, 0
    for identity, unknown in lacking.items():
        encoder = by_identity[identity]
        nbytes += len(unknown) * (encoder.dim * stored_dtype(encoder.spec).itemsize + SIZE + 8)
        if unknown:
            seconds += len(unknown) * _seconds_each(encoder, samples[identity][-_SAMPLE:])
    return Plan(Counts(rows, to_encode, hits, duplicates, missing, skipped), seconds if to_encode else None, nbytes)


def _seconds_each(encoder: Encoder, sample: Sequence[bytes]) -> float:
    encoder.encode(sample[:1])  # loads the weights
    began = time.monotonic()
    encoder.encode(sample)
    return (time.monotonic() - began) / len(sample)
