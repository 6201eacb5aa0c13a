"""The invariants of a store, which hold after every fault.

I1  every row committed before the fault is readable and bit-identical
I2  no key returns the vector of another
I3  nothing partial is visible
I4  a typed error and its documented exit code, no hang, no death by a signal in the user's process
I5  the same command, run again, ends with the manifest of an undisturbed run and encodes at most one shard per worker again

``check`` looks for the first three in a store; the last two are about processes, see ``tests.faults.warm`` and ``aftermath``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa

from cachestore import open_store
from cachestore.encoders import Encoder
from cachestore.errors import CachestoreError, DamageError, StoreNotFound
from cachestore.index import Locations
from cachestore.keys import Key, fingerprint, keys
from cachestore.manifest import PRESENT
from cachestore.shard import stored_dtype
from cachestore.store import Store

EXIT_CODES = {0, 2, 3, 4, 5, 130, 143}
"""Documented, without 1, which is a bug."""


@dataclass
class Findings:
    """What ``check`` found; sound when nothing was lost, wrong or partial."""

    stored: int = 0
    lost: int = 0
    wrong: int = 0
    partial: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.lost or self.wrong or self.partial)


def check(root: Path, payloads: Sequence[bytes], committed: Collection[Key], encoder: Encoder) -> Findings:
    """Read everything a store holds of these payloads, and compare it with what the encoder says.

    ``committed`` are the keys known to have been stored before the fault. The store is opened for reading only.
    """
    findings = Findings(partial=torn_files(root))
    try:
        store = open_store(root, mode="r")
    except (StoreNotFound, DamageError):
        findings.lost = len(committed)  # nothing can be read: no fault when nothing was stored
        return findings
    with store:
        _check_vectors(store, payloads, committed, encoder, findings)
        _check_names(store, findings)
    return findings


def torn_files(root: Path) -> list[str]:
    """Files under their final names whose bytes are not those that the name promises."""
    torn = []
    for folder, suffix in (("shards", ".arrow"), ("manifests", ".json"), ("chunks", ".arrow")):
        for path in (root / folder).rglob("*"):
            if path.is_dir():
                continue
            data = path.read_bytes()
            if path.suffix != suffix:
                torn.append(f"{path} does not belong there")
            elif folder != "chunks" and sha256(data).hexdigest() != path.stem:
                torn.append(f"{path} is not what its name says")
            elif folder == "chunks" and not _whole_arrow(data):
                torn.append(f"{path} is cut short")
    return torn


def _whole_arrow(data: bytes) -> bool:
    try:
        pa.ipc.open_file(data).read_all()
    except (pa.ArrowException, OSError):
        return False
    return True


def _check_vectors(
    store: Store, payloads: Sequence[bytes], committed: Collection[Key], encoder: Encoder, findings: Findings
) -> None:
    dtype = stored_dtype(encoder.spec)
    distinct = list(dict.fromkeys(payloads))
    names = [key for key in keys(fingerprint(encoder.spec), distinct) if key is not None]
    truth = dict(zip(names, encoder.encode(distinct).astype(dtype), strict=True))
    found = store.index.lookup(names)
    rows = np.flatnonzero(found.shards >= 0)
    known = {names[row] for row in rows}
    findings.stored = len(known)
    findings.lost = len(set(committed) - known)
    wanted = np.frombuffer(b"".join(names[row] for row in rows), "V32")
    out = np.zeros((len(rows), encoder.dim), dtype)
    try:
        store.gather(wanted, Locations(found.shards[rows], found.rows[rows]), out)
    except CachestoreError as error:
        findings.lost += len(known & set(committed))
        findings.partial.append(f"indexed rows cannot be read: {error}")
        return
    expected = np.stack([truth[names[row]] for row in rows]) if len(rows) else out
    findings.wrong = int((out.view(np.uint8) != expected.view(np.uint8)).any(axis=1).sum())


def _check_names(store: Store, findings: Findings) -> None:
    for name in store.names():
        if name.manifest is None:
            findings.partial.append(f"name {name.name!r}: {name.fault}")
            continue
        for column in name.manifest.columns:
            try:
                _, reasons = store.column(name.manifest, column.name)
            except CachestoreError as error:
                findings.partial.append(f"name {name.name!r} leads to rows that are not there: {error}")
            else:
                assert len(reasons) == name.manifest.rows
                assert PRESENT in reasons
