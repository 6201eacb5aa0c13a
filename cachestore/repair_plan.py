"""What a repair would do: what is damaged, what of it can be salvaged, what is lost, and what to build again. Writes nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cachestore import (
    layout,
    references,
    repair_logs,
    repair_records,
    shard,
)
from cachestore import manifest as manifests
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.findings import Finding
from cachestore.index import Index, ShardEntry
from cachestore.keys import Fingerprint, fingerprint, prefixes
from cachestore.manifest import PRESENT, ManifestColumn, Version
from cachestore.references import Pin, Tag
from cachestore.repair_logs import LogMend
from cachestore.repair_records import Lost, RecordMend
from cachestore.salvage import Origin, salvage
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
class Displaced:
    """The file of a shard that lies elsewhere; paths are relative to the store."""

    name: str
    path: str
    left: str
    """why it stays where it is; empty when it goes back to its place"""


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
    displaced: tuple[Displaced, ...]
    shards: tuple[ShardMend, ...]
    files: tuple[str, ...]
    """put in quarantine whole"""
    logs: tuple[LogMend, ...]
    records: tuple[RecordMend, ...]
    lost: tuple[Lost, ...]
    """versions, names, tags and pins that nobody can bring back from what is there"""
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
        back = any(not one.left for one in self.displaced)
        return not (self.header or back or self.shards or self.files or self.logs or self.records or self.index)

    @property
    def complete(self) -> bool:
        """Whether the store is whole afterwards: nothing is lost, and nothing needs a build."""
        return not (self.build or self.lost)


def plan(root: Path, progress: Progress | None = None) -> RepairPlan:
    """What there is to repair. Reads every byte, writes nothing."""
    return _Planning(root, verify(root, read_data=True, progress=progress)).plan()


class _Planning:
    """One plan while it is made."""

    def __init__(self, root: Path, report: Report) -> None:
        self.root = root
        self.report = report
        self.on_disk = layout.content_sizes(root, shard.FOLDER, shard.SUFFIX)
        self.replaced: Mapping[str, str] = {}

    def plan(self) -> RepairPlan:
        damaged = {finding.what: finding for finding in self.damage("shard") if self.lies_there(finding)}
        entries, known = self.entries(), self.origins()
        displaced = []
        back: dict[str, Displaced] = {}
        for path, name in sorted(layout.displaced(self.root).items()):
            left = "a copy of it goes to its place" if name in back else self.left(path, name)
            displaced.append(Displaced(name, str(path.relative_to(self.root)), left))
            if not left:
                back[name] = displaced[-1]
        mends, held = [], []
        for finding in damaged.values():
            name = Path(finding.what).name.removesuffix(shard.SUFFIX)
            found = salvage(self.root / finding.what, known, entries.get(name))
            mends.append(ShardMend(name, finding.what, finding.detail, len(found.keys) if found else 0))
            held += [prefixes(found.keys)] if found else []
            self.on_disk.pop(name, None)
        for name, one in back.items():
            found = salvage(self.root / one.path, known, entries.get(name))
            held += [prefixes(found.keys)] if found else []
        self.mend_files()
        gone = [finding for finding in self.damage("shard") if not self.lies_there(finding)]
        index = [finding.detail for finding in self.damage("index")]
        index += [f"{finding.what} is gone." for finding in gone if Path(finding.what).stem not in back]
        index += ["Shards are replaced."] if mends else []
        index += ["A shard is back that it does not know."] if back.keys() - entries.keys() else []
        build, whole = self.complete(held) if self.report.damage or self.records else ((), ())
        return RepairPlan(
            self.root,
            bool(self.damage("header")),
            tuple(displaced),
            tuple(mends),
            tuple(self.going),
            tuple(self.logs.values()),
            tuple(self.records.values()),
            tuple(self.lost),
            tuple(dict.fromkeys(index)),
            build,
            whole,
            known,
            entries,
        )

    def left(self, path: Path, name: str) -> str:
        """Why a displaced shard is left; empty when it is missed, or may be."""
        missed = {Path(finding.what).stem for finding in self.damage("shard")}
        if name not in missed and not self.damage("vector"):
            return "nothing misses it: gc may have removed it"
        if name in repair_records.forgotten_shards(self.root):
            return "it holds what was forgotten: delete it"
        return "" if _digest(path) == name else "its bytes are not those that its name is the SHA-256 of"

    def mend_files(self) -> None:
        """Plan what becomes of small files, the map of superseded manifests first: the others lead through it."""
        self.records: dict[str, RecordMend] = {}
        self.lost: list[Lost] = []
        mended = repair_records.plan_superseded(self.root)
        if mended is not None:
            self.records[mended.path] = mended
        if mended is not None and isinstance(mended.content, Mapping):
            self.replaced = mended.content
        else:
            with contextlib.suppress(DamageError):  # nothing of it is known
                self.replaced = references.superseded(self.root)
        names = dict.fromkeys(Path(finding.what).name.removesuffix(".jsonl") for finding in self.damage("log"))
        self.logs = {name: repair_logs.plan_log(self.root, name) for name in names}
        self.lost += [lost for log in self.logs.values() for lost in log.lost]
        found = [finding for finding in self.damage(*_WHOLE_FILES) if self.lies_there(finding)]
        for finding in found:
            match finding.kind:
                case "tag":
                    self.keep(finding.what, self.tag(self.root / finding.what))
                case "pin":
                    pin = repair_records.plan_pin(self.root, self.root / finding.what, self.replaced)
                    self.keep(finding.what, pin)
                case "superseded" if mended is None:
                    said = "Versions from which rows were forgotten may lead nowhere now. Restore it from a backup."
                    self.lost.append(Lost(finding.what, said))
        # nothing can be done about these, and they are no reason to stop
        self.lost += [Lost(one.what, f"{one.detail} {one.advice}") for one in self.damage("name", "forget")]
        self.going = [finding.what for finding in found if finding.what not in self.records]

    def tag(self, path: Path) -> RecordMend | Lost:
        name = path.stem.rpartition("@")[0]
        log, whole = self.log(name), name not in self.logs
        return repair_records.plan_tag(self.root, path, log, whole and bool(log), self.replaced)

    def keep(self, path: str, found: RecordMend | Lost) -> None:
        if isinstance(found, RecordMend):
            self.records[path] = found
        else:
            self.lost.append(found)

    def log(self, name: str) -> Sequence[Version]:
        """The versions of a name as they will be."""
        if name in self.logs:
            return self.logs[name].versions
        try:
            return manifests.read_log(self.root, name)
        except (DamageError, ManifestNotFound):
            return ()

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

    def complete(self, salvaged: list[NDArray[np.uint64]]) -> tuple[tuple[Incomplete, ...], tuple[str, ...]]:
        """What leads to a manifest of which something will be gone, and what to a whole one.

        Holds eight bytes of every key that will be there, and takes two keys that share them for one, which 10⁹ keys do once in 40 stores.
        """
        held = np.concatenate([*(self.prefixes(name) for name in self.on_disk), *salvaged, np.empty(0, np.uint64)])
        held.sort()
        labels: dict[str, list[str]] = {}
        for label, led, optional in self.roots():
            identity = repair_records.now(self.root, led, self.replaced)
            if repair_records.there(self.root, identity) or not optional:  # gc may remove what is optional
                labels.setdefault(identity, []).append(label)
        build, whole = [], []
        for identity, leading in labels.items():
            label = ", ".join(dict.fromkeys(leading))
            missing = self.missing(identity, held)
            if missing is None:
                build.append(Incomplete(label, None, 0))
            elif missing == (0, 0):
                whole.append(label)
            else:
                build.append(Incomplete(label, *missing))
        return tuple(build), tuple(whole)

    def roots(self) -> Iterator[tuple[str, str, bool]]:
        """Everything that will lead to a manifest: its label, the manifest's id, and whether that may be gone."""
        for name in layout.names(self.root):
            log = self.log(name)
            for line in log:
                yield f"{name}@{line.version}", line.manifest, line is not log[-1]
        for name, word in layout.tags(self.root):
            tag = self.mended(f"tags/{name}@{word}.json", lambda: references.read_tag(self.root, name, word))  # noqa: B023
            if isinstance(tag, Tag):
                yield f"{name}@{word}", tag.manifest, False
        for run in layout.runs(self.root):
            pin = self.mended(f"pins/{run}.json", lambda: references.read_pin(self.root, run))  # noqa: B023
            if isinstance(pin, Pin):
                for identity in pin.manifests:
                    yield f"run {pin.path}", identity, False

    def mended(self, path: str, read: Callable[[], object]) -> object:
        """What a small file will say, None when it will not be there."""
        if path in self.records:
            return self.records[path].content
        with contextlib.suppress(DamageError, ManifestNotFound):
            return read()
        return None

    def prefixes(self, name: str) -> NDArray[np.uint64]:
        return prefixes(shard.open_shard(self.root, name).keys)

    def missing(self, identity: str, held: NDArray[np.uint64]) -> tuple[int, int] | None:
        """Of a manifest: vectors that will not be there, and rows of chunks that will not. None when it will not be there itself."""
        try:
            manifest = manifests.read_manifest(self.root, identity)
        except (DamageError, ManifestNotFound):
            return None
        if str(manifests.manifest_path(Path(), identity)) in self.going:
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


def _digest(path: Path) -> str | None:
    """SHA-256 of a file in hexadecimal, None when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
