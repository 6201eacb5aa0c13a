"""The plan of a forgetting: where the vectors and keys of some payloads lie, and who refers to them. Computing it changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore import layout, references, shard
from cachestore import manifest as manifests
from cachestore.dataset import Dataset, open_dataset
from cachestore.errors import CachestoreError, DamageError, ManifestNotFound, UsageError
from cachestore.forget_scope import foreign, purgeable
from cachestore.gc_rules import chunk_path
from cachestore.keys import Fingerprint, Key, key
from cachestore.manifest import PRESENT, Manifest, Version
from cachestore.marks import Wanted, chunk_keys
from cachestore.sources import recorded
from cachestore.store import Store


@dataclass(frozen=True)
class Held:
    """A shard that holds vectors to forget: at ``rows``, of ``total``."""

    name: str
    rows: NDArray[np.int64]
    total: int
    nbytes: int


@dataclass(frozen=True)
class ForgetPlan:
    """What would be forgotten; made by ``plan_forget``."""

    store: Store
    keys: NDArray[np.void]
    found: frozenset[bytes]
    """those of the keys that shards or chunks hold"""
    payloads: int
    """how many texts or files were given, or are known of rows: their vectors are found whichever encoder made them"""
    unknown: frozenset[bytes]
    """those of them that the store holds nothing of, under any encoder"""
    shards: tuple[Held, ...]
    chunks: Mapping[str, Mapping[str, NDArray[np.int64]]]
    """rows to null by column, by chunk"""
    loose_chunks: tuple[str, ...]
    """chunks with such a key that no manifest names, or that are damaged: they are deleted"""
    manifests: tuple[Manifest, ...]
    """those with such chunks"""
    versions: tuple[str, ...]
    tags: tuple[str, ...]
    runs: tuple[str, ...]
    sources: tuple[str, ...]
    """files that those versions were built from: they are not touched, nor are the directories of runs"""
    purged: int
    """bytes in trash, quarantine, temporary files and damaged indexes, which go as well"""
    stale: bool
    """whether none of the keys is found, and the index has one in what it no longer uses: it is filled anew then"""
    foreign: tuple[str, ...]
    """what lies in the store's folder and is not the store's: nobody looks into it"""
    notes: tuple[str, ...]

    @property
    def vectors(self) -> int:
        """How many stored vectors go."""
        return sum(len(held.rows) for held in self.shards)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do: no such key, and nothing that may hold what was removed before."""
        return not (self.found or self.purged or self.stale)


def plan_forget(
    store: Store, payloads: Iterable[bytes] = (), rows: tuple[str, Sequence[int]] | None = None
) -> ForgetPlan:
    """What forgetting these payloads, and these rows (from 0) of what a reference leads to, would do. Changes nothing.

    Raises UsageError for a row that is not there, ManifestNotFound, and DamageError when a shard is damaged: repair it first.
    """
    given, wanted = set(payloads), set[bytes]()
    notes: list[str] = []
    if rows is not None:
        wanted, found, notes = _of_rows(store, *rows)
        given |= found
    known = [*_fingerprints(store)]
    keys_of = {payload: {key(fingerprint, payload) for fingerprint in known} for payload in given}
    plan = plan_keys(store, wanted.union(*keys_of.values()))
    unknown = frozenset(payload for payload, keys in keys_of.items() if plan.found.isdisjoint(keys))
    return replace(plan, payloads=len(given), unknown=unknown, notes=tuple(notes))


def plan_keys(store: Store, wanted: Iterable[bytes]) -> ForgetPlan:
    """As ``plan_forget``, for keys instead of payloads."""
    keys = Wanted(wanted)
    found: set[bytes] = set()
    shards = tuple(_shards(store, keys, found))
    chunks, loose, affected = _chunks(store.root, keys, found)
    ids = {manifest.id for manifest in affected}
    roots = [root for root in references.roots(store.root) if root.manifest in ids]
    lines = [line for _, line in _lines(store.root) if references.follow(store.root, line.manifest) in ids]
    return ForgetPlan(
        store,
        keys.keys,
        frozenset(found),
        0,
        frozenset(),
        shards,
        chunks,
        loose,
        affected,
        versions=tuple(root.label for root in roots if root.kind == "name"),
        tags=tuple(root.label for root in roots if root.kind == "tag"),
        runs=tuple(sorted({root.label for root in roots if root.kind == "pin"})),
        sources=tuple(sorted({str(_source(line)["label"]) for line in lines if _source(line).get("digest")})),
        purged=sum(item.nbytes for item in purgeable(store.root)),
        stale=not found and bool(keys.inside(store.root / "index" / "data.mdb")),
        foreign=tuple(str(path.relative_to(store.root)) for path in foreign(store.root)),
        notes=(),
    )


def _fingerprints(store: Store) -> set[Fingerprint]:
    """Every encoder that the store knows of."""
    found = set(store.index.specs())
    for manifest in _readable(store.root):
        found |= {column.fingerprint for column in manifest.columns}
    for name in layout.content_sizes(store.root, shard.FOLDER, shard.SUFFIX):
        found.add(_open(store.root, name).fingerprint)
    return found


def _shards(store: Store, wanted: Wanted, there: set[bytes]) -> Iterator[Held]:
    """Shards with such keys, which are added to ``there``, whether the index knows of them or not.

    Raises DamageError when another row of theirs is damaged.
    """
    indexed = store.index.lookup([Key(each) for each in wanted.keys.tolist()])
    names = store.index.names({number for number in indexed.shards.tolist() if number >= 0})
    places = {
        (names.get(number), row) for number, row in zip(indexed.shards.tolist(), indexed.rows.tolist(), strict=True)
    }
    for name in sorted(layout.content_sizes(store.root, shard.FOLDER, shard.SUFFIX)):
        found = _open(store.root, name)
        rows = wanted.among(found.keys)
        there.update(found.keys[rows].tolist())
        places -= {(name, row) for row in rows.tolist()}
        if len(rows):
            keep = np.delete(np.arange(len(found.keys)), rows)
            try:
                if len(keep):
                    found.take(keep, found.keys[keep])
            except DamageError as error:
                raise _repair_first(error) from error
            yield Held(name, rows, len(found.keys), found.nbytes)
    for place, _ in places:
        if place is not None:
            raise _repair_first(DamageError(f"Shard {place} in {store.root} holds other keys than the index says."))


def _chunks(
    root: Path, wanted: Wanted, there: set[bytes]
) -> tuple[dict[str, dict[str, NDArray[np.int64]]], tuple[str, ...], tuple[Manifest, ...]]:
    """By chunk and column the rows with such keys; the loose chunks with one; and the manifests that name the former.

    The keys are added to ``there``.
    """
    hits: dict[str, dict[str, NDArray[np.int64]]] = {}
    readable = list(_readable(root))
    seen: set[str] = set()
    for manifest in readable:
        for at, (identity, _) in enumerate(manifest.chunks):
            if identity not in seen:
                try:
                    columns = [*chunk_keys(root, manifest, at)]
                except DamageError:
                    continue  # its bytes are searched below
                found = {column: wanted.among(keys) for column, keys, _ in columns}
                there.update(each for column, keys, _ in columns for each in keys[found[column]].tolist())
                seen.add(identity)
                if any(len(rows) for rows in found.values()):
                    hits[identity] = found
    others = sorted(manifests.all_chunks(root).keys() - seen)
    inside = {identity: wanted.inside(chunk_path(root, identity)) for identity in others}
    loose = tuple(identity for identity, keys in inside.items() if keys)
    there.update(*inside.values())
    affected = tuple(manifest for manifest in readable if any(identity in hits for identity, _ in manifest.chunks))
    return hits, loose, affected


def _of_rows(store: Store, reference: str, rows: Sequence[int]) -> tuple[set[bytes], set[bytes], list[str]]:
    """Keys, payloads and remarks of rows (from 0) of what a reference leads to."""
    manifest = store.manifest(reference)
    wrong = next((row for row in rows if not 0 <= row < manifest.rows), None)
    if wrong is not None:
        raise UsageError(f"{reference} has the rows 0 to {manifest.rows - 1}; there is no row {wrong}.")
    chosen = np.unique(np.array(rows, np.int64))
    known: dict[tuple[str, int], bytes] = {}
    first = 0
    for at, (_, count) in enumerate(manifest.chunks):
        here = chosen[(chosen >= first) & (chosen < first + count)]
        if len(here):
            for column, keys, reasons in chunk_keys(store.root, manifest, at):
                present = here[reasons[here - first] == PRESENT]
                known.update(((column, row), keys[row - first].tobytes()) for row in present.tolist())
        first += count
    notes = []
    empty = len(chosen) - len({row for _, row in known})
    if empty:
        notes.append(f"{empty} of the rows have no vector: they are missing, were skipped, or are forgotten already.")
    payloads, why = _payloads(store, reference, manifest, chosen, known)
    if why:
        notes.append(
            f"The texts of the rows are not known: {why} So vectors that other encoders gave them are not found. "
            "Forget the texts themselves to be sure: --text or --file."
        )
    return set(known.values()), payloads, notes


def _payloads(
    store: Store, reference: str, manifest: Manifest, rows: NDArray[np.int64], known: Mapping[tuple[str, int], bytes]
) -> tuple[set[bytes], str]:
    """The payloads of the rows from the file that they were built from, and why there are none."""
    lines = [
        (name != reference.partition("@")[0], -line.version, line)
        for name, line in _lines(store.root)
        if references.follow(store.root, line.manifest) == manifest.id
    ]
    why = "no version of a name tells where they came from."
    for _, _, line in sorted(lines, key=lambda found: found[:2]):
        source = _source(line)
        if not source.get("digest"):
            why = f"they came from {source.get('label', 'a table in memory')}."
            continue
        path = Path(str(source["label"]))
        try:
            dataset = open_dataset(path)
            if dataset.digest() != source["digest"] or dict(dataset.options) != source["options"]:
                why = f"{path} has changed since."
                continue
            found = _read(dataset, line.provenance, manifest, rows, known)
        except (CachestoreError, OSError) as error:
            why = f"{error}"
            continue
        if found is not None:
            return found, ""
        why = f"{path} does not give the keys that are stored."
    return set(), why


def _read(
    dataset: Dataset,
    provenance: Mapping[str, Any],
    manifest: Manifest,
    rows: NDArray[np.int64],
    known: Mapping[tuple[str, int], bytes],
) -> set[bytes] | None:
    """The payloads of the rows; None when one has another key than is known."""
    found: set[bytes] = set()
    first = 0
    made = {column.name: recorded(provenance, column) for column in manifest.columns}
    for batch in dataset.batches(list(dict.fromkeys(name for one in made.values() for name in one.needs))):
        here = rows[(rows >= first) & (rows < first + batch.num_rows)]
        part = batch.take((here - first).tolist()) if len(here) else None
        first += batch.num_rows
        for column in manifest.columns if part is not None else ():
            cells = made[column.name].cells(dataset, part, 0)
            for row, payload in zip(here.tolist(), cells.payloads, strict=True):
                expected = known.get((column.name, row))
                if payload is None:
                    continue
                if expected is not None and key(column.fingerprint, payload) != expected:
                    return None
                found.add(payload)
    return found


def _lines(root: Path) -> Iterator[tuple[str, Version]]:
    for name in manifests.names(root):
        for line in manifests.read_log(root, name):
            yield name, line


def _source(line: Version) -> Mapping[str, Any]:
    source: Any = line.provenance.get("source")
    return source if isinstance(source, Mapping) else {}


def _readable(root: Path) -> Iterator[Manifest]:
    """All manifests that can be read; a manifest itself holds no key."""
    for identity in manifests.all_manifests(root):
        try:
            yield manifests.read_manifest(root, identity)
        except (DamageError, ManifestNotFound):
            continue  # its chunks are loose, and searched as such


def _open(root: Path, name: str) -> shard.Shard:
    try:
        return shard.open_shard(root, name)
    except DamageError as error:
        raise _repair_first(error) from error


def _repair_first(error: DamageError) -> DamageError:
    return DamageError(f"{error} What is damaged cannot be searched: run `cachestore repair`, then forget again.")
