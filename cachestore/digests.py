"""Digests of files that encoders are made of, remembered: a model is not read again to know that it is the same."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

from cachestore import encoders
from cachestore.index import Index
from cachestore.keys import Fingerprint, keys

_SETTLED_SECONDS = 2.0


def digest(index: Index, path: Path) -> str:
    """SHA-256 of a file in hexadecimal, remembered by its size, times and inode; remembering only saves time."""
    status = path.stat()
    seen = _seen(status)
    key = b"file:" + keys(Fingerprint(bytes(32)), [os.fsencode(path.absolute())])[0]  # type: ignore[operator]
    remembered = index.recall(key)
    if remembered is not None and remembered[: len(seen)] == seen:
        return remembered[len(seen) :].hex()
    digest = encoders.sha256_of_file(path)
    # a file changed within the clock's grain after this would keep its times, so young files are not remembered
    settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS
    if settled and _seen(path.stat()) == seen:
        index.remember(key, seen + bytes.fromhex(digest))
    return digest


def _seen(status: os.stat_result) -> bytes:
    return struct.pack("<QqqQQ", status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
