"""Doing harm to the files of a store. Nothing here opens it: a fault test reads a damaged store in processes of their own."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import stat
import tempfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from tests.faults.warm import Ended, Warm

KINDS = {
    "shard": "shards/*/*.arrow",
    "chunk": "chunks/*/*.arrow",
    "manifest": "manifests/*/*.json",
    "name": "names/*.jsonl",
    "tag": "tags/*.json",
    "pin": "pins/*.json",
    "header": "store.json",
    "index": "index/data.mdb",
}
"""Every class of file that a store is made of, and where its files lie."""


def files_of(root: Path, kind: str) -> list[Path]:
    """The files of that class, in an order that does not change from one copy of a store to the next."""
    return sorted(root.glob(KINDS[kind]))


_made: list[Path] = []


def ask(warm: Warm, question: str, folder: Path, **settings: Any) -> Ended:
    """Run a function of ``tests.faults.readers`` on a folder, in a process of its own."""
    return warm.run(f"tests.faults.readers:{question}", folder=str(folder), **settings)


def command(warm: Warm, *arguments: object) -> Ended:
    """Run a command in a process of its own."""
    return warm.run("tests.faults.readers:command", arguments=[str(argument) for argument in arguments])


def sound_store(warm: Warm, folder: Path) -> Path:
    """A new folder with a table and the small store built of it, with a file of every class. Made once, and then copied."""
    if not _made:
        _made.append(Path(tempfile.mkdtemp(prefix="faults-sound-")))
        atexit.register(shutil.rmtree, _made[0], ignore_errors=True)
        assert ask(warm, "make", _made[0] / "sound").code == 0
    return copied(_made[0] / "sound", folder / "sound")


def copied(folder: Path, place: Path) -> Path:
    """A copy of a folder with its store, in the place of what lay there; returns ``place``."""
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(folder, place, copy_function=shutil.copy)
    return place


def write(path: Path, data: bytes) -> None:
    """Replace the bytes of a file in place, though it be write-protected."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR)
    path.write_bytes(data)


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    write(path, bytes(data))


def cut(path: Path, size: int) -> None:
    """Keep the first ``size`` bytes of a file."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR)
    os.truncate(path, size)


def mutate(path: Path, chance: random.Random) -> str:
    """Change a file as a broken disk, a wrong editor or an enemy would; returns what was done."""
    data = bytearray(path.read_bytes())
    if not data:
        data = bytearray(b"\0")
    done = []
    for _ in range(chance.choice((1, 1, 2, 4))):
        how = chance.choice(list(_MUTATIONS))
        _MUTATIONS[how](data, chance)
        done.append(how)
        if not data:
            break
    write(path, bytes(data))
    return ", ".join(done)


def _bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 1, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _bytes(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    length = min(chance.choice((1, 2, 4, 8, 64, 512)), len(data) - start)
    data[start : start + length] = chance.randbytes(length)


def _number(data: bytearray, chance: random.Random) -> None:
    width = chance.choice((2, 4, 8))
    start = chance.randrange(max(1, len(data) - width)) // width * width
    value = chance.choice((0, 1, 0x7F, 0xFF, 1 << (8 * width - 1), (1 << (8 * width)) - 1)) & ((1 << (8 * width)) - 1)
    data[start : start + width] = value.to_bytes(width, "little")


def _block(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((64, 512, 4096))
    blocks = max(1, len(data) // size)
    source, target = chance.randrange(blocks) * size, chance.randrange(blocks) * size
    data[target : target + size] = data[source : source + size]


def _zeros(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((16, 512, 4096))
    start = chance.randrange(len(data)) // size * size
    data[start : start + size] = bytes(len(data[start : start + size]))


def _shorter(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _longer(data: bytearray, chance: random.Random) -> None:
    data += chance.randbytes(chance.choice((1, 8, 5000)))


def _out(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.choice((1, 8, 64))]


_MUTATIONS: dict[str, Callable[[bytearray, random.Random], None]] = {
    "bits": _bits, "bytes": _bytes, "number": _number, "block": _block, "zeros": _zeros,
    "shorter": _shorter, "longer": _longer, "out": _out,
}  # fmt: skip


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file below ``root`` that is not a lock, by its path."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "lock.mdb"]
    return {
        str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.parent.name != "locks"
    }
