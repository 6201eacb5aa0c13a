"""The plan of a collection: what of a store may go by some rules. Computing it changes nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cachestore import manifest as manifests
from cachestore import references, shard
from cachestore.errors import CachestoreError, DamageError, ManifestNotFound
from cachestore.forget_journal import interrupted
from cachestore.gc_rules import (
    SPARSE,
    GcPlan,
    Item,
    Rules,
    Sparse,
    chunk_path,
    items,
    nbytes_of,
    part_of,
    shard_path,
    size,
)
from cachestore.index import ShardEntry
from cachestore.manifest import Manifest
from cachestore.marks import Table, places_by_chunk
from cachestore.pins import pins
from cachestore.store import Store

_CHECKED_ROWS: Final = 4096
_RUN: Final = "the run "


def plan_gc(store: Store, rules: Rules, now: float | None = None) -> GcPlan:
    """What a collection by these rules would do at ``now`` (UTC seconds). Changes nothing; a store open for reading will do.

    Raises DamageError when a rule depends on what is needed, and a name, tag, run, manifest or chunk that tells so cannot be read.
    """
    return _Planning(store, rules, time.time() if now is None else now).plan()


def plan_leftovers(store: Store, rules: Rules, now: float) -> GcPlan:
    """The part of a plan that needs no index: temporary files, trash whose grace is over, damaged indexes."""
    batches = items(store.root / "trash")
    over = tuple(batch for batch in batches if _batch_age(batch.path, now) >= rules.grace)
    return GcPlan(
        store,
        rules,
        now,
        temporary=items(store.root / "tmp"),
        batches=over,
        kept_batches=tuple(batch for batch in batches if batch not in over),
        damaged_indexes=items(store.root, "index.damaged-"),
    )


class _Planning:
    """Computes one plan."""

    def __init__(self, store: Store, rules: Rules, now: float) -> None:
        self.store, self.rules, self.now, self.root = store, rules, now, store.root
        self.notes: list[str] = []
        self.labels: dict[str, str] = {}
        self.entries = store.index.shards()
        self.table = Table(store.index)
        # without a lock, the table may be newer than the entries
        self.numbers = max(max(self.entries, default=-1), int(self.table.shards.max(initial=-1))) + 1
        self.held = np.bincount(self.table.shards, minlength=self.numbers)
        self.superseded = [
            entry for entry in self.entries.values() if not self.held[entry.number] and self.elsewhere(entry)
        ]

    def plan(self) -> GcPlan:
        if quarantined := nbytes_of(items(self.root / "quarantine")):
            self.notes.append(
                f"{self.root / 'quarantine'} holds {quarantined:,} bytes of damaged files, which gc leaves alone."
            )
        if line := interrupted(self.root):
            self.notes.append(line)
        if self.rules.repack and not self.rules.vectors:
            self.notes.append(
                "Without --unreferenced-older-than or --max-bytes, --repack keeps the rows that nothing refers to, "
                "and rewrites only shards of whose rows other shards hold more than a quarter."
            )
        missing = [pin for pin in pins(self.root) if pin.missing()] if self.rules.drop_missing_runs else []
        plan = replace(
            plan_leftovers(self.store, self.rules, self.now),
            pins=tuple(missing),
            superseded=tuple(self.superseded),
            shards=len(self.entries),
            shard_bytes=nbytes_of(self.entries.values()),
        )
        if self.rules.vectors or self.rules.keep_last is not None:
            plan = self.with_references(plan)
        elif self.rules.repack:
            plan = self.with_shards(plan, self.table.marks())
        return replace(plan, notes=tuple(self.notes))

    def elsewhere(self, entry: ShardEntry) -> bool:
        """Whether every row of a shard is indexed in another one, and passes its check there."""
        try:
            found = shard.open_shard(self.root, entry.name)
            for at in range(0, len(found.keys), _CHECKED_ROWS):
                wanted = found.keys[at : at + _CHECKED_ROWS]
                places = self.store.index.lookup(wanted.tolist())
                if (places.shards < 0).any() or (places.shards == entry.number).any():
                    raise DamageError("Some of its rows are indexed nowhere.")
                self.store.gather(wanted, places, np.empty((len(wanted), found.vectors.shape[1]), found.vectors.dtype))
        except DamageError as error:
            self.notes.append(
                f"Shard {entry.name[:12]} has no row of its own, but stays: {error} Run: cachestore verify"
            )
            return False
        return True

    def with_references(self, plan: GcPlan) -> GcPlan:
        """The plan with the manifests, chunks and vectors that no root needs."""
        kept, aged = self.roots({pin.run for pin in plan.pins})
        on_disk = set(manifests.all_manifests(self.root))
        unnamed = on_disk - kept.keys() - aged.keys()
        going = set(aged)
        if self.rules.vectors:
            going |= {identity for identity in unnamed if self.expired(manifests.manifest_path(self.root, identity))}
            unneeded, uses = self.unneeded(kept, unnamed - going)
            going |= {identity for identity, places in uses.items() if unneeded[places].any()}
            plan = self.with_shards(plan, unneeded)
        elif self.rules.repack:
            plan = self.with_shards(plan, self.table.marks())
        staying = [*kept.values(), *self.readable(unnamed - going)]
        return replace(
            plan,
            manifests=tuple(_item(manifests.manifest_path(self.root, identity)) for identity in sorted(going)),
            versions=tuple(sorted(label for labels in aged.values() for label in labels)),
            chunks=tuple(self.chunks(staying, self.readable(going))),
        )

    def roots(self, dropped: set[str]) -> tuple[dict[str, Manifest], dict[str, list[str]]]:
        """The manifests that names, tags and runs keep; and, by manifest, the versions that --keep-last lets go.

        Runs in ``dropped`` keep nothing.
        """
        found = [root for root in references.roots(self.root) if root.kind != "pin"]
        newer = Counter(root.name for root in found if root.kind == "name")
        wanted: dict[str, str] = {}
        old: dict[str, list[str]] = {}
        for root in found:
            behind = 0
            if root.kind == "name":
                # by the lines of the log: a tag, or a number that repair left out, makes no version older
                newer[root.name] -= 1
                behind = newer[root.name]
            if behind and not manifests.manifest_path(self.root, root.manifest).exists():
                continue  # collected before
            if self.rules.keep_last is not None and behind >= self.rules.keep_last:
                old.setdefault(root.manifest, []).append(root.label)
            else:
                wanted[root.manifest] = root.label
        for pin in pins(self.root):
            if pin.run not in dropped:
                wanted.update(
                    {references.follow(self.root, identity): f"{_RUN}{pin.path}" for identity in pin.manifests}
                )
        self.labels = wanted
        kept = {identity: self.needed(identity) for identity in wanted}
        return kept, {identity: labels for identity, labels in old.items() if identity not in kept}

    def needed(self, identity: str) -> Manifest:
        try:
            return manifests.read_manifest(self.root, identity)
        except (ManifestNotFound, DamageError) as error:
            raise self.unknown(identity, error) from error

    def unknown(self, identity: str, error: CachestoreError) -> DamageError:
        label = self.labels[identity]
        hint = " Or delete the run, and add --drop-missing-runs." if label.startswith(_RUN) else ""
        return DamageError(f"What {label} needs is not known, so only leftovers can go: {error}{hint}")

    def unneeded(
        self, kept: Mapping[str, Manifest], unnamed: Iterable[str]
    ) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.int64]]]:
        """Marks (n,) of the vectors that go; and by unnamed manifest the places in the table of what it names and no root needs."""
        needed = self.table.marks()
        seen: set[str] = set()
        for manifest in kept.values():
            try:
                for identity, places in places_by_chunk(self.root, self.table, [manifest], seen):
                    needed[places] = True
                    seen.add(identity)
            except DamageError as error:
                raise self.unknown(manifest.id, error) from error
        uses = self.uses(unnamed, needed)
        unneeded = self.table.marks()
        if self.rules.unreferenced_older_than is not None:
            protected = needed.copy()
            for places in uses.values():
                protected[places] = True
            unneeded = ~protected & self.of_shards(
                number for number, entry in self.entries.items() if self.expired(shard_path(self.root, entry.name))
            )
        if self.rules.max_bytes is not None:
            unneeded |= ~needed & self.of_shards(self.evicted(needed, unneeded, uses, self.rules.max_bytes))
        return unneeded, uses

    def uses(self, unnamed: Iterable[str], needed: NDArray[np.bool_]) -> dict[str, NDArray[np.int64]]:
        uses = {}
        by_chunk: dict[str, NDArray[np.int64]] = {}
        for manifest in self.readable(unnamed):
            try:
                by_chunk.update(
                    (identity, places[~needed[places]])
                    for identity, places in places_by_chunk(self.root, self.table, [manifest], by_chunk)
                )
            except DamageError as error:
                self.notes.append(f"Nothing refers to manifest {manifest.id[:12]}, and it protects nothing: {error}")
                continue
            parts = [by_chunk[identity] for identity, _ in manifest.chunks]
            uses[manifest.id] = np.concatenate([*parts, np.empty(0, np.int64)])
        return uses

    def evicted(
        self, needed: NDArray[np.bool_], unneeded: NDArray[np.bool_], uses: Mapping[str, NDArray[np.int64]], limit: int
    ) -> list[int]:
        """Numbers of the shards, least recently used first, that lose what no root needs, for all to take at most ``limit`` bytes."""
        used = {number: self.time(shard_path(self.root, entry.name)) for number, entry in self.entries.items()}
        for identity, places in uses.items():
            named = self.time(manifests.manifest_path(self.root, identity))
            for number in np.unique(self.table.shards[places]).tolist():
                used[number] = max(used[number], named)
        rest, by_roots = self.table.counts(~unneeded, self.numbers), self.table.counts(needed, self.numbers)
        sizes = {number: self.left(entry, int(rest[number])) for number, entry in self.entries.items()}
        total = sum(sizes.values())
        chosen: list[int] = []
        for number in sorted(sizes, key=lambda number: (used[number], number)):
            if total <= limit:
                return chosen
            saved = sizes[number] - self.left(self.entries[number], int(by_roots[number]))
            if saved > 0:
                chosen.append(number)
                total -= saved
        if total > limit:
            full = sum(part_of(entry, int(by_roots[number])) for number, entry in self.entries.items())
            hint = (
                ""
                if self.rules.repack or full == total
                else f" With --repack, about {total - full:,} bytes of them could go."
            )
            self.notes.append(
                f"{total:,} bytes of shards stay, more than --max-bytes {limit:,}: names, tags and runs refer to rows in all of them.{hint}"
            )
        return chosen

    def left(self, entry: ShardEntry, kept: int) -> int:
        """About how many bytes of a shard stay when ``kept`` of its indexed rows do."""
        if entry in self.superseded or (not kept and self.held[entry.number]):
            return 0
        return part_of(entry, kept) if self.rules.repack and 0 < kept < SPARSE * entry.rows else entry.nbytes

    def with_shards(self, plan: GcPlan, unneeded: NDArray[np.bool_]) -> GcPlan:
        """The plan with the shards that go, and those that are rewritten, when the vectors marked (n,) are not needed."""
        kept = self.table.counts(~unneeded, self.numbers)
        gone = [entry for number, entry in self.entries.items() if self.held[number] and not kept[number]]
        sparse = [
            Sparse(entry, self.table.rows[(self.table.shards == number) & ~unneeded])
            for number, entry in self.entries.items()
            if self.rules.repack and 0 < kept[number] < SPARSE * entry.rows
        ]
        return replace(plan, unreferenced=tuple(gone), sparse=tuple(sparse))

    def chunks(self, staying: Iterable[Manifest], going: Iterable[Manifest]) -> Iterator[Item]:
        """Chunks that no staying manifest has: those of manifests that go, and old ones that killed builds left."""
        needed = {identity for manifest in staying for identity, _ in manifest.chunks}
        of_going = {identity for manifest in going for identity, _ in manifest.chunks}
        for identity in sorted(manifests.all_chunks(self.root).keys() - needed):
            path = chunk_path(self.root, identity)
            if identity in of_going or self.expired(path):
                yield _item(path)

    def readable(self, identities: Iterable[str]) -> list[Manifest]:
        found = []
        for identity in sorted(identities):
            try:
                found.append(manifests.read_manifest(self.root, identity))
            except (ManifestNotFound, DamageError) as error:
                self.notes.append(f"Nothing refers to manifest {identity[:12]}, and it protects nothing: {error}")
        return found

    def of_shards(self, numbers: Iterable[int]) -> NDArray[np.bool_]:
        """The vectors (n,) that lie in these shards."""
        chosen = np.zeros(self.numbers, np.bool_)
        chosen[list(numbers)] = True
        marked: NDArray[np.bool_] = chosen[self.table.shards]
        return marked

    def expired(self, path: Path) -> bool:
        """Whether a file is as old as --unreferenced-older-than asks."""
        age = self.rules.unreferenced_older_than
        return age is not None and self.now - self.time(path) >= age

    def time(self, path: Path) -> float:
        """When a file was written (UTC seconds); now, for one from the future and for one that is gone meanwhile."""
        try:
            return min(path.stat().st_mtime, self.now)
        except FileNotFoundError:
            return self.now


def _batch_age(path: Path, now: float) -> float:
    """Seconds since a batch went to the trash; one from the future is new."""
    seconds = path.name.partition("-")[0]
    return max(0.0, now - (float(seconds) if seconds.isdecimal() else path.lstat().st_mtime))


def _item(path: Path) -> Item:
    return Item(path, size(path))
