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
    before = seen(status)
    key = b"file:" + keys(Fingerprint(bytes(32)), [os.fsencode(path.absolute())])[0]  # type: ignore[operator]
    remembered = index.recall(key)
    if remembered is not None and remembered[: len(before)] == before:
        return remembered[len(before) :].hex()
    digest = encoders.sha256_of_file(path)
    if settled(status) and seen(path.stat()) == before:
        index.remember(key, before + bytes.fromhex(digest))
    return digest


def settled(status: os.stat_result) -> bool:
    """Whether a file is old enough: one changed within the clock's grain would keep its times, so young files are not remembered."""
    return time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_SECONDS


def seen(status: os.stat_result) -> bytes:
    """What a file's bytes are remembered by: 36 to 40 bytes of its size, times, inode and device."""
    return struct.pack("<QqqQQ", status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
