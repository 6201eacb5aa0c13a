"""A folder of pictures as a data set: a folder per class, and before it, where there is one, a folder per split.

``photos/cat/1.jpg`` is a row whose ``image`` is the path ``cat/1.jpg`` and whose ``label`` is ``cat``; ``photos/train/cat/1.jpg``
also has ``train`` as its ``split``. Rows are ordered by path. Files are told by their suffix; hidden ones and others are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import xxhash

from cachestore.errors import DataError
from cachestore.tables import READER, ROWS, Reader, reading, strings

SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_SPLITS: Final = {
    **dict.fromkeys((b"train", b"training"), b"train"),
    **dict.fromkeys((b"validation", b"valid", b"val", b"dev"), b"validation"),
    b"test": b"test",
}
_ENDINGS: Final = tuple(os.fsencode(suffix) for suffix in SUFFIXES)


def open_folder(path: Path) -> Reader:
    """The pictures under a directory as they are now. Raises DataError when there are none, or a folder cannot be listed."""
    with reading(str(path)):
        found = sorted(_files(os.fsencode(path), b"", set()))
    if not found:
        raise DataError(f"{path} is a directory without pictures ({', '.join(SUFFIXES)}). Name a data file in it.")
    columns: dict[str, list[bytes | None]] = {"image": list(found)}
    parts = [name.split(b"/") for name in found]
    splits = [_SPLITS.get(part[0].lower()) if len(part) > 1 else None for part in parts]
    if all(splits) and b"train" in splits:
        columns["split"] = list(splits)
        parts = [part[1:] for part in parts]
    labels = [part[0] if len(part) > 1 else None for part in parts]
    if any(labels):
        columns["label"] = list(labels)

    def read(wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
        kept = list(wanted) or ["image"]
        for start in range(0, len(found), ROWS):
            arrays = [strings(columns[name][start : start + ROWS]) for name in kept]
            yield pa.RecordBatch.from_arrays(arrays, names=kept).select(list(wanted))

    def digest() -> str:
        return xxhash.xxh3_128_hexdigest(b"\0".join(found))

    return Reader(tuple(columns), len(found), {"format": "folder", "reader": READER}, read, digest=digest)


def _files(root: bytes, inside: bytes, above: set[tuple[int, int]]) -> Iterator[bytes]:
    """The paths of the pictures in a folder, from ``root``; what links to a folder ``above`` is passed over."""
    here = os.path.join(root, inside)
    status = os.stat(here)
    if (own := (status.st_dev, status.st_ino)) in above:
        return
    with os.scandir(here) as entries:
        listed = [(entry.name, _is_folder(entry)) for entry in entries if not entry.name.startswith(b".")]
    for name, is_folder in listed:
        if is_folder:
            yield from _files(root, os.path.join(inside, name), above | {own})
        elif name.lower().endswith(_ENDINGS):
            yield os.path.join(inside, name)


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: what it is is said where it is read
        return False
