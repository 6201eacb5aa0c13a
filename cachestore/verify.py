"""Verify: does a store hold what it promises? Names lead to manifests, manifests to chunks, their keys through the index to rows of shards.

Only reads, and works beside builders and collectors: what looks wrong while they work is looked at again. The index is checked as
bytes before LMDB opens it. Memory is bounded: chunks, shards and blocks of the index are taken one at a time.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from cachestore import header, index_file, layout, references, shard
from cachestore import manifest as manifests
from cachestore.encoders import EncoderLike
from cachestore.errors import DamageError, StoreFormatError, StoreNotFound
from cachestore.findings import Finding, Findings, reason
from cachestore.forget_journal import check_journal
from cachestore.index import Index
from cachestore.index_file import Examined
from cachestore.manifest import Manifest
from cachestore.reencode import Named, Reencoded, reencode
from cachestore.references import Root
from cachestore.store import root_of
from cachestore.verify_index import REBUILD, IndexCheck
from cachestore.verify_manifests import ManifestCheck, unreferenced
from cachestore.verify_names import check_roots
from cachestore.verify_shards import Shards

Progress: TypeAlias = Callable[[int, int], None]
"""Told the bytes of shards that were read, and how many are to be read."""

_STRAYS = 100


@dataclass(frozen=True)
class Report:
    """What was checked and found. ``seed`` draws the same sample again."""

    root: Path
    findings: tuple[Finding, ...]
    manifests: int
    chunks: int
    shards: int
    cells: int
    """keys of manifests"""
    rows_read: int
    bytes_read: int
    reencoded: Reencoded | None
    roots: tuple[Root, ...]
    """what leads to manifests that are there"""
    indexed: bool
    """whether the index could be read, so that vectors were looked for"""
    seed: int = 0
    seconds: float = 0.0

    @property
    def damage(self) -> tuple[Finding, ...]:
        """What needs something to be done."""
        return tuple(finding for finding in self.findings if finding.severity == "damage")

    @property
    def notices(self) -> tuple[Finding, ...]:
        """What harms nothing."""
        return tuple(finding for finding in self.findings if finding.severity == "notice")


def verify(
    path: str | os.PathLike[str] | None = None,
    names: Sequence[str] = (),
    *,
    read_data: bool = False,
    sample: float = 0.0,
    reencode: int = 0,
    encoders: Sequence[EncoderLike] = (),
    seed: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check the store at ``path`` (as ``open_store`` finds it), or only what ``names`` (NAME, NAME@VERSION, NAME@TAG or ids) lead to.

    Structure always; with ``read_data`` every byte of the shards, with ``sample`` those of a random part (0 to 1) of their bytes.
    ``reencode`` that many random rows with those of ``encoders`` that they came from, and compare. Damage is returned, not raised.
    Raises StoreNotFound, StoreFormatError, ManifestNotFound for names that lead nowhere, UsageError.
    """
    began = time.monotonic()
    root = root_of(path)
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    running = _Running(root, names, 1.0 if read_data else sample, reencode, encoders, random.Random(seed), progress)
    return replace(running.run(), seed=seed, seconds=time.monotonic() - began)


class _Running:
    """One check while it runs."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        part: float,
        reencode: int,
        encoders: Sequence[EncoderLike],
        draw: random.Random,
        progress: Progress | None,
    ) -> None:
        self.root = root
        self.names = names
        self.part = part
        self.reencode = reencode
        self.encoders = encoders
        self.draw = draw
        self.progress = progress
        self.findings = Findings()

    def run(self) -> Report:
        self.check_header()
        self.wanted = {reference: references.resolve(self.root, reference) for reference in self.names}
        known = {*layout.names(self.root), *(name for name, _ in layout.tags(self.root))}
        logs = {reference.partition("@")[0] for reference in self.names} & known
        self.roots = check_roots(self.root, self.findings, sorted(logs) if self.names else None)
        self.shards = Shards(self.root, self.findings)
        self.on_disk = layout.content_sizes(self.root, shard.FOLDER, shard.SUFFIX)
        self.read = (0, 0)
        with ThreadPoolExecutor(1) as pool:
            examined = pool.submit(index_file.examine, self.root / "index", keys=not self.names)
            if not self.names:  # before anything else: what the disk cannot read must not be mapped
                self.read = self.shards.check_data(*self.drawn(self.on_disk))
            index = self.open_index(examined)
        if index is None:
            return self.walk(None, None)
        try:
            return self.walk(index, examined.result())
        except DamageError as error:  # LMDB found its file damaged after all
            self.findings.damage("index", "index", reason(error), REBUILD)
            return self.walk(None, None)
        finally:
            index.close()

    def check_header(self) -> None:
        """Raises StoreNotFound and StoreFormatError, unless files of a store lie there: then it is the header that is damaged."""
        try:
            header.check(self.root)
        except (StoreFormatError, StoreNotFound) as error:
            newer = isinstance(error, StoreFormatError) and error.__cause__ is None
            if newer or not all((self.root / folder).is_dir() for folder in (shard.FOLDER, "index")):
                raise
            said = reason(error) if isinstance(error, StoreFormatError) else "It is gone."
            self.findings.damage("header", "store.json", said, "Run `cachestore repair`: it writes a new one.")

    def open_index(self, examined: Future[Examined]) -> Index | None:
        """The index, None where it cannot be used, which is reported."""
        try:
            problems = examined.result().problems
            if not problems:
                return Index(self.root / "index", readonly=True)
        except FileNotFoundError:
            problems = ["It is gone."]
        except DamageError as error:
            problems = [reason(error)]
        more = f" There are {len(problems) - 1} more problems." if len(problems) > 1 else ""
        self.findings.damage("index", "index", f"{problems[0]}{more} No vector was looked for.", REBUILD)
        return None

    def walk(self, index: Index | None, examined: Examined | None) -> Report:
        """From manifests to shards and back."""
        checking = ManifestCheck(self.root, self.findings, self.labels())
        ids = list(dict.fromkeys(self.wanted.values())) if self.names else manifests.all_manifests(self.root)
        found = [one for identity in ids if (one := checking.read(identity)) is not None]
        on_disk, places = self.on_disk, None
        if index is None or examined is None:
            checking.look(found, None)
            for name in on_disk:
                self.shards.open(name)
            for name in self.shards.displaced:
                self.shards.miss(name, "its rows")
        elif self.names:
            places = IndexCheck(index, self.shards, self.findings)
            checking.look(found, places)
            on_disk = {name: size for name, size in on_disk.items() if name in checking.shards}
            places.check_entries(checking.shards)
            self.read = self.shards.check_data(*self.drawn(on_disk))
        else:
            places = IndexCheck(index, self.shards, self.findings)
            places.check_entries()
            for part in places.parts(examined):
                checking.look(found, part)
            places.check_unindexed()
        for one in found:
            checking.report(one)
        compared = None
        if self.reencode and index is not None:
            named = self.named(found)
            compared = reencode(self.root, index, named, self.reencode, self.encoders, self.draw, self.findings)
        if not self.names:
            check_journal(self.root, self.findings)
            self.check_leftovers(found, checking, places)
        return Report(
            root=self.root,
            findings=tuple(self.findings.all),
            manifests=len(found),
            chunks=len(checking.chunks),
            shards=len(on_disk),
            cells=checking.cells,
            rows_read=self.read[0],
            bytes_read=self.read[1],
            reencoded=compared,
            roots=tuple(self.roots),
            indexed=index is not None,
        )

    def drawn(self, on_disk: Mapping[str, int]) -> tuple[list[str], Callable[[int], None]]:
        """The shards to read whole, and whom to tell of the bytes read."""
        names = sorted(on_disk) if self.part else []
        if self.part < 1:
            self.draw.shuffle(names)
            reached = itertools.accumulate((on_disk[name] for name in names), initial=0)
            wanted = self.part * sum(on_disk.values())
            names = [name for name, before in zip(names, reached, strict=False) if before < wanted]
        total, progress = sum(on_disk[name] for name in names), self.progress
        return names, lambda done: progress(done, total) if progress else None

    def labels(self) -> dict[str, str]:
        """What leads to each manifest: names with their newest version first."""
        found: dict[str, list[str]] = {}
        for root in sorted(self.roots, key=lambda root: (root.kind, -(root.version or 0))):
            kind = "run " if root.kind == "pin" else ""
            found.setdefault(root.manifest, []).append(kind + root.label)
        for reference, identity in self.wanted.items():
            found.setdefault(identity, [reference])
        return {identity: ", ".join(dict.fromkeys(labels)) for identity, labels in found.items()}

    def named(self, found: Sequence[Manifest]) -> list[Named]:
        """The versions of names to encode again: those asked for, else the newest of each name."""
        by_id = {one.id: one for one in found}
        newest: dict[str, Root] = {}
        for root in self.roots:
            if root.kind == "name" and root.name and root.manifest in by_id:
                key = root.manifest if self.names else root.name
                newest[key] = max(newest.get(key, root), root, key=lambda root: root.version or 0)
        return [
            Named(root.label, references.version(self.root, root.name or "", root.version), by_id[root.manifest])
            for root in newest.values()
        ]

    def check_leftovers(self, found: Sequence[Manifest], checking: ManifestCheck, places: IndexCheck | None) -> None:
        """What nothing needs: it harms nothing, and takes room."""
        notice = self.findings.notice
        collect = "`cachestore gc` says what can go."
        loose, chunks = unreferenced(self.root, found, self.roots)
        if loose:
            notice("leftover", "manifests", f"{loose:,} are led to by no name, tag or pin.", collect)
        if chunks:
            notice("leftover", "chunks", f"{chunks:,} are of no manifest.", collect)
        if places is not None:
            unused = {entry.name for entry in places.entries.values()} - checking.shards
            if unused:
                notice("leftover", "shards", f"{len(unused):,} hold no vector of a manifest.", collect)
        strays = [path for path in layout.strays(self.root) if not self.reported(path)]
        for path in strays[:_STRAYS]:
            notice("leftover", str(path.relative_to(self.root)), "It is not a file of the store, and ignored.")
        if more := len(strays[_STRAYS:]):
            notice("leftover", "store", f"{more:,} more files in it are not the store's, and ignored.")
        for folder, said in (
            ("tmp", "of writers at work or killed. The next build sweeps what is left."),
            ("trash", f"that gc put there. {collect}"),
            ("quarantine", "that repair put there. Delete them when you have seen enough."),
        ):
            if count := _count(self.root / folder):
                notice("leftover", folder, f"It holds {count:,} files {said}")
        for path in sorted(self.root.glob("index.damaged-*")):
            notice("leftover", path.name, "It is an index that was replaced.", "It may be deleted.")

    def reported(self, path: Path) -> bool:
        """Whether a file in a wrong place was reported as the shard that is missed elsewhere."""
        name = path.name.removesuffix(shard.SUFFIX)
        return self.shards.displaced.get(name) == path and name in self.shards.unreadable


def _count(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))
