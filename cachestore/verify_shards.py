"""Checking shards: each by itself, in its form and in all its bytes."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachestore import layout, shard
from cachestore.errors import DamageError
from cachestore.findings import Findings, reason
from cachestore.shard import Shard

REPAIR = "Run `cachestore repair`: it keeps the sound rows and says what to build again."
_MAPPED = 8  # each mapping holds a file descriptor


def place(name: str) -> str:
    """Where a shard lies, relative to the store."""
    return str(layout.content_path(Path(), shard.FOLDER, name, shard.SUFFIX))


class Shards:
    """The shards of a store while it is checked: one that cannot be opened is reported, once, and not opened again."""

    def __init__(self, root: Path, findings: Findings) -> None:
        self.root = root
        self.unreadable: set[str] = set()
        self.faulty: dict[str, NDArray[np.int64]] = {}
        """Rows of readable shards that are not to be served, where all bytes were read."""
        self._findings = findings
        self._mapped: OrderedDict[str, Shard] = OrderedDict()

    def open(self, name: str) -> Shard | None:
        """A shard, None when it cannot be read or is gone."""
        if name in self.unreadable:
            return None
        opened = self._mapped.pop(name, None)
        if opened is None:
            try:
                opened = shard.open_shard(self.root, name)
            except DamageError as error:
                if os.path.lexists(self.path(name)):
                    self.give_up(name, reason(error))
                return None
        self._mapped[name] = opened
        if len(self._mapped) > _MAPPED:
            self._mapped.popitem(last=False)
        return opened

    def path(self, name: str) -> Path:
        """Where its file is, or should be."""
        return self.root / place(name)

    def give_up(self, name: str, detail: str) -> None:
        """Report a shard, and do not open it again."""
        self.unreadable.add(name)
        self._mapped.pop(name, None)
        self.report(name, detail)

    @cached_property
    def displaced(self) -> dict[str, Path]:
        """Shards that lie whole in a wrong folder, while nothing lies in their place: name → where."""
        return {name: path for path, name in layout.displaced(self.root).items() if _is(path, name)}

    def miss(self, name: str, rows: str) -> None:
        """Report a shard whose file is not in its place, and do not open it."""
        self.unreadable.add(name)
        if name in self.displaced:
            said = (
                f"The file is not there, and with it {rows}; it lies at {self.displaced[name].relative_to(self.root)}."
            )
            self._findings.damage("shard", place(name), said, "Run `cachestore repair`: it puts it back.")
        else:
            self.report(name, f"The file is gone, and with it {rows}.")

    def report(self, name: str, detail: str) -> None:
        """Say what is wrong with a shard."""
        self._findings.damage("shard", place(name), detail, REPAIR)

    def check_data(self, names: Iterable[str], progress: Callable[[int], None]) -> tuple[int, int]:
        """Read every byte of shards: the digest of each, and check and values of every row. Returns the rows and bytes read.

        ``progress`` is told the bytes read so far.
        """
        rows = nbytes = 0
        for name, digest in _ahead(self.root, names):
            try:
                right = digest.result() == name
            except FileNotFoundError:
                continue  # collected meanwhile; if not, the index misses it
            except DamageError as error:
                self.give_up(name, reason(error))
                continue
            opened = self.open(name)
            if opened is not None:
                rows += len(opened.keys)
                nbytes += opened.nbytes
                self._check_rows(opened, right)
                progress(nbytes)
        return rows, nbytes

    def _check_rows(self, opened: Shard, right: bool) -> None:
        faults, count = opened.faults(), len(opened.keys)
        said = [] if right else ["Its bytes are not those that its name is the SHA-256 of."]
        for rows, what in ((faults.wrong, "fail their check"), (faults.infinite, "hold NaN or an infinity")):
            if len(rows):
                said.append(f"{len(rows):,} of {count:,} rows {what}, the first is row {int(rows[0])}.")
        sound = faults.sound(count)
        if len(sound) < count:
            self.faulty[opened.name] = np.union1d(faults.wrong, faults.infinite)
        elif said:
            said.append(f"All {count:,} rows pass their checks.")
        if said:
            self.report(opened.name, " ".join(said))
        elif len(faults.zero):
            zeros = f"{len(faults.zero):,} of {count:,} vectors are zero, the first is row {int(faults.zero[0])}."
            self._findings.notice(
                "shard", place(opened.name), zeros, "Their encoder may mean it, of a text without words."
            )


def _is(path: Path, name: str) -> bool:
    """Whether the bytes of a file are those that a name is the SHA-256 of."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == name
    except OSError:
        return False


def _ahead(root: Path, names: Iterable[str]) -> Iterator[tuple[str, Future[str]]]:
    """The digests of shards, computed in threads a little ahead of whoever takes them."""
    workers = max(1, (os.cpu_count() or 1) - 1)
    with ThreadPoolExecutor(workers, "sha256") as pool:
        waiting: deque[tuple[str, Future[str]]] = deque()
        try:
            for name in names:
                waiting.append((name, pool.submit(shard.digest, root, name)))
                if len(waiting) > workers:
                    yield waiting.popleft()
            yield from waiting
        finally:
            pool.shutdown(cancel_futures=True)
