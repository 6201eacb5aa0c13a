"""Repair: what is damaged goes to quarantine, what is sound of it is kept, and the index is filled anew. Nothing is changed in place.

A plan says what is damaged, what can be salvaged, and what to build again; carrying it out writes beside and swaps. Cut short anywhere,
it leaves a store of which nothing sound is lost, and the next repair finishes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachestore import files, header, index_file, locks, reconcile, repair_logs, shard
from cachestore import manifest as manifests
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.findings import Finding
from cachestore.index import Index, ShardEntry
from cachestore.keys import Fingerprint, fingerprint, prefixes
from cachestore.manifest import PRESENT, ManifestColumn
from cachestore.repair_logs import LogMend
from cachestore.salvage import Origin, Salvaged, salvage
from cachestore.store import root_of
from cachestore.verify import Progress, Report, verify

_WHOLE_FILES = ("manifest", "chunk", "tag", "pin", "superseded")


@dataclass(frozen=True)
class ShardMend:
    """A damaged shard: its sound rows go into a new one, and its file to quarantine."""

    name: str
    path: str
    why: str
    salvaged: int


@dataclass(frozen=True)
class Incomplete:
    """What leads to a manifest of which something is gone."""

    label: str
    vectors: int | None
    """how many must be encoded again; None when its manifest is gone, so that nobody knows"""
    rows: int
    """how many rows it has whose keys are gone, though their vectors may be there"""


@dataclass(frozen=True)
class RepairPlan:
    """What a repair does; paths are relative to the store."""

    root: Path
    header: bool
    shards: tuple[ShardMend, ...]
    files: tuple[str, ...]
    """put in quarantine whole"""
    logs: tuple[LogMend, ...]
    index: tuple[str, ...]
    """why a new one is filled; none when it stays"""
    build: tuple[Incomplete, ...]
    whole: tuple[str, ...]
    """versions of names, tags and runs of which nothing is lost"""
    known: Mapping[Fingerprint, Origin]
    entries: Mapping[str, ShardEntry]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to repair, though there may be something to build."""
        return not (self.header or self.shards or self.files or self.logs or self.index)


def repair(
    path: str | os.PathLike[str] | None = None,
    *,
    dry_run: bool = False,
    wait: float = header.LOCK_SECONDS,
    show: Callable[[RepairPlan], None] = lambda plan: None,
    tell: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> RepairPlan:
    """Repair the store at ``path`` (as ``open_store`` finds it) while nobody builds; returns the plan that was carried out.

    Reads every byte of the store first. ``show`` gets the plan before anything is changed; with ``dry_run`` nothing is.
    Raises StoreNotFound, StoreNotWritable, StoreLocked when a writer is still there after ``wait`` seconds, StoreFull.
    """
    root = root_of(path)
    if dry_run:
        planned = plan(root, progress)
        show(planned)
        return planned
    if not (root / shard.FOLDER).is_dir():
        header.check(root)  # says what is wrong, before a lock is made there
    # not Store.alone: a store that needs repair may not open
    with locks.held(root, "builders", exclusive=True, timeout=wait, tell=tell):
        planned = plan(root, progress)
        show(planned)
        _carry_out(planned)
    return planned


def plan(root: Path, progress: Progress | None = None) -> RepairPlan:
    """What there is to repair. Reads every byte, writes nothing."""
    return _Planning(root, verify(root, read_data=True, progress=progress)).plan()


class _Planning:
    """One plan while it is made."""

    def __init__(self, root: Path, report: Report) -> None:
        self.root = root
        self.report = report
        self.on_disk = files.content_sizes(root, shard.FOLDER, shard.SUFFIX)

    def plan(self) -> RepairPlan:
        damaged = {finding.what: finding for finding in self.damage("shard") if self.lies_there(finding)}
        entries, known = self.entries(), self.origins()
        mends, held = [], []
        for finding in damaged.values():
            name = Path(finding.what).name.removesuffix(shard.SUFFIX)
            found = salvage(self.root / finding.what, known, entries.get(name))
            mends.append(ShardMend(name, finding.what, finding.detail, len(found.keys) if found else 0))
            held += [prefixes(found.keys)] if found else []
            self.on_disk.pop(name, None)
        names = dict.fromkeys(Path(finding.what).stem for finding in self.damage("log"))
        logs = [repair_logs.plan_log(self.root, name) for name in names]
        whole_files = [finding.what for finding in self.damage(*_WHOLE_FILES) if self.lies_there(finding)]
        index = [finding.detail for finding in self.damage("index")]
        index += [f"{finding.what} is gone." for finding in self.damage("shard") if not self.lies_there(finding)]
        index += ["Shards are replaced."] if mends else []
        build, whole = self.complete(held, set(whole_files)) if self.report.damage else ((), ())
        return RepairPlan(
            self.root,
            bool(self.damage("header")),
            tuple(mends),
            tuple(whole_files),
            tuple(logs),
            tuple(dict.fromkeys(index)),
            build,
            whole,
            known,
            entries,
        )

    def damage(self, *kinds: str) -> list[Finding]:
        return [finding for finding in self.report.damage if finding.kind in kinds]

    def lies_there(self, finding: Finding) -> bool:
        """Whether what it names is a path at which something lies; labels of manifests are none."""
        return ("/" in finding.what and os.path.lexists(self.root / finding.what)) or finding.kind == "superseded"

    def entries(self) -> dict[str, ShardEntry]:
        """What the index knows of shards, nothing if it cannot be read."""
        if not self.report.indexed:
            return {}
        try:
            index = Index(self.root / "index", readonly=True)
        except DamageError:
            return {}
        try:
            return {entry.name: entry for entry in index.shards().values()}
        except DamageError:
            return {}
        finally:
            index.close()

    def origins(self) -> dict[Fingerprint, Origin]:
        """The encoders of manifests and of shards that can be read."""
        found: dict[Fingerprint, Origin] = {}
        for identity in manifests.all_manifests(self.root):
            for column in self.columns(identity):
                found[column.fingerprint] = Origin(column.spec, column.dim)
        for name in self.on_disk:
            try:
                opened = shard.open_shard(self.root, name)
            except DamageError:
                continue
            found[opened.fingerprint] = Origin(opened.spec, opened.vectors.shape[1])
        return found

    def columns(self, identity: str) -> tuple[ManifestColumn, ...]:
        try:
            columns = manifests.read_manifest(self.root, identity).columns
        except (DamageError, ManifestNotFound):
            return ()
        return tuple(column for column in columns if fingerprint(column.spec) == column.fingerprint)

    def complete(
        self, salvaged: list[NDArray[np.uint64]], going: set[str]
    ) -> tuple[tuple[Incomplete, ...], tuple[str, ...]]:
        """What leads to a manifest of which something will be gone, and what to a whole one.

        Holds eight bytes of every key that will be there, and takes two keys that share them for one, which 10⁹ keys do once in 40 stores.
        """
        held = np.concatenate([*(self.prefixes(name) for name in self.on_disk), *salvaged, np.empty(0, np.uint64)])
        held.sort()
        labels: dict[str, list[str]] = {}
        for root in self.report.roots:
            labels.setdefault(root.manifest, []).append(root.label)
        build = [
            Incomplete(finding.what, None, 0)
            for finding in self.damage("manifest", "tag", "pin")
            if not self.lies_there(finding)
        ]
        whole = []
        for identity, leading in labels.items():
            label = ", ".join(dict.fromkeys(leading))
            missing = self.missing(identity, held, going)
            if missing is None:
                build.append(Incomplete(label, None, 0))
            elif missing == (0, 0):
                whole.append(label)
            else:
                build.append(Incomplete(label, *missing))
        return tuple(build), tuple(whole)

    def prefixes(self, name: str) -> NDArray[np.uint64]:
        return prefixes(shard.open_shard(self.root, name).keys)

    def missing(self, identity: str, held: NDArray[np.uint64], going: set[str]) -> tuple[int, int] | None:
        """Of a manifest: vectors that will not be there, and rows of chunks that will not. None when it will not be there itself."""
        try:
            manifest = manifests.read_manifest(self.root, identity)
        except (DamageError, ManifestNotFound):
            return None
        if str(manifests.manifest_path(Path(), identity)) in going:
            return None
        rows, lost = 0, [np.empty(0, np.uint64)]
        for chunk, count in manifest.chunks:
            try:
                keys, reasons = manifests.read_chunk(self.root, chunk, count, [one.name for one in manifest.columns])
            except DamageError:
                rows += count
                continue
            for names, why in zip(keys, reasons, strict=True):
                wanted = np.unique(prefixes(names[why == PRESENT]))
                places = np.minimum(np.searchsorted(held, wanted), max(len(held) - 1, 0))
                lost.append(wanted[held[places] != wanted] if len(held) else wanted)
        return len(np.unique(np.concatenate(lost))), rows


def _carry_out(planned: RepairPlan) -> None:
    root = planned.root
    if planned.empty:
        return
    files.sweep_temporary(root)  # nobody else writes
    if planned.header:
        if os.path.lexists(root / "store.json"):
            files.to_quarantine(root, root / "store.json")
        header.renew(root)
    waiting = {mend.name for mend in planned.shards}
    for mend in planned.shards:
        found = salvage(root / mend.path, planned.known, planned.entries.get(mend.name))
        waiting.discard(mend.name)
        if found is None or _keep(root, found, waiting) != mend.name:
            files.to_quarantine(root, root / mend.path)
    if planned.index:
        _fill_index(root)
    with locks.held(root, "names", exclusive=True, timeout=header.LOCK_SECONDS):
        for what in planned.files:
            files.to_quarantine(root, root / what)
        for log in planned.logs:
            repair_logs.carry_out(root, log)


def _keep(root: Path, found: Salvaged, waiting: set[str]) -> str:
    """Write salvaged rows as a shard, never over one that is still to be salvaged; returns its name.

    When all that its name promised was salvaged, that is the shard as it was, and takes the place of the damaged file.
    """
    keys, vectors = found.keys, found.vectors
    if sha256(shard.serialise(found.spec, keys, vectors)).hexdigest() in waiting:  # files were swapped
        order = [0, 0] if len(keys) == 1 else range(len(keys))[::-1]
        keys, vectors = keys[order], vectors[order]
    return shard.write(root, found.spec, keys, vectors)[0]


def _fill_index(root: Path) -> None:
    """Put a new index in the place of the old one, which may not be one that LMDB can open."""
    folder = root / "index"
    aside = None
    with locks.held(root, "index", exclusive=True, timeout=header.LOCK_SECONDS):
        if not _opens(folder):
            aside = files.to_quarantine(root, folder) if os.path.lexists(folder) else None
        index = Index(folder, readonly=False)
    try:
        reconcile.rebuild(root, index)
    finally:
        index.close()
    if aside is not None:
        files.delete_tree(root, aside)  # it held nothing that the new one does not


def _opens(folder: Path) -> bool:
    try:
        if index_file.examine(folder).problems:
            return False
        Index(folder, readonly=True).close()
    except (FileNotFoundError, DamageError):
        return False
    return True
