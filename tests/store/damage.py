"""A small store of several shards and versions, and ways to damage it as disks and people do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachestore import layout, open_store, shard
from cachestore.build import Build, run
from cachestore.fill import Limits
from cachestore.findings import Finding
from cachestore.verify import Report, verify
from tests.store.counting import CountingEncoder

SHARD_ROWS = 32


@dataclass
class Damaged:
    """A store with versions of two names, and the data files they were built from."""

    root: Path
    folder: Path
    encoder: CountingEncoder = field(default_factory=CountingEncoder)

    def data(self, name: str, rows: int) -> Path:
        path = self.folder / f"{name}.csv"
        path.write_text("text\n" + "".join(f"{name} row {row}\n" for row in range(rows)), encoding="utf-8")
        return path

    def build(self, name: str = "first", rows: int = 100) -> Build:
        """Build rows under a name; the same again is the same version."""
        with open_store(self.root) as store:
            limits = Limits(shard_rows=SHARD_ROWS, window_rows=SHARD_ROWS)
            return run(store, self.data(name, rows), {"text": self.encoder}, name=name, limits=limits)

    def vectors(self, name: str = "first") -> NDArray[np.float16]:
        with open_store(self.root, "r") as store:
            return store.vectors(name, "text")[0]

    def shards(self) -> list[Path]:
        """The files of shards, largest first."""
        names = layout.content_sizes(self.root, shard.FOLDER, shard.SUFFIX)
        order = sorted(names, key=lambda name: (-names[name], name))
        return [layout.content_path(self.root, shard.FOLDER, name, shard.SUFFIX) for name in order]

    def one(self, folder: str) -> Path:
        """The one content file of a folder."""
        (path,) = (path for path in (self.root / folder).rglob("*") if path.is_file())
        return path

    def change(self, path: Path, edit: Callable[[bytearray], object]) -> None:
        """Change the bytes of a file in place, which a store never does."""
        data = bytearray(path.read_bytes())
        edit(data)
        path.chmod(0o644)
        path.write_bytes(data)

    def flip(self, path: Path, at: int, bit: int = 0) -> None:
        self.change(path, lambda data: data.__setitem__(at, data[at] ^ (1 << bit)))

    def truncate(self, path: Path, size: int) -> None:
        self.change(path, lambda data: data.__delitem__(slice(size, None)))

    def verify(self, *names: str, read_data: bool = True, **options: object) -> Report:
        return verify(self.root, names, read_data=read_data, **options)  # type: ignore[arg-type]

    def copy(self, place: Path) -> Damaged:
        shutil.copytree(self.root, place)
        return Damaged(place, self.folder, self.encoder)


def kinds(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.kind for finding in findings}
