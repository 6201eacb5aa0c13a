"""Collects what a store no longer needs: carries out the plan of ``plan_gc`` while nobody builds.

What goes leaves the index first, then moves to ``trash/<UTC seconds>-<id>/`` under the path it had, and a later collection deletes it
when its grace is over. A reader that has such a file mapped keeps its bytes. A collection that dies anywhere is finished by the next.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cachestore import files, reconcile
from cachestore.errors import StoreFull
from cachestore.gc_plan import plan_gc, plan_leftovers
from cachestore.gc_rules import GcPlan, Rules, shard_path
from cachestore.index import ShardEntry
from cachestore.pins import drop_pin
from cachestore.repack import repack
from cachestore.store import Store


@dataclass(frozen=True)
class Collected:
    """What a collection did; sizes in bytes."""

    freed: int
    """deleted now"""
    trashed: int
    """moved to the trash now"""
    in_trash: int
    """in the trash now, with what lay there before"""
    deleted_from: float | None
    """the time (UTC seconds) from which a later collection deletes all that is in the trash now; None when it is empty"""
    written: int
    """of rewritten shards"""
    swept: int
    """how many temporary files of killed writers were deleted"""
    notes: tuple[str, ...]


def collect(
    store: Store,
    rules: Rules,
    *,
    wait: float = 30.0,
    tell: Callable[[str], None] | None = None,
    show: Callable[[GcPlan], None] | None = None,
) -> tuple[GcPlan, Collected]:
    """Plan, ``show`` and execute a collection while nobody builds; ``tell`` is called if this has to wait for builders.

    Raises StoreLocked when one is still there after ``wait`` seconds, StoreNotWritable, StoreFull, and DamageError as ``plan_gc``.
    """
    with store.alone(wait, tell, mend=False) as swept:
        leftovers = 0
        try:
            reconcile.reconcile(store.root, store.index)
        except StoreFull:
            # the index has no room to change: what needs no index goes first
            leftovers = _delete_leftovers(plan_leftovers(store, rules, time.time()))
            if not leftovers:
                raise
            reconcile.reconcile(store.root, store.index)
        plan = plan_gc(store, rules)
        if show:
            show(plan)
        done = execute(plan)
        return plan, replace(done, swept=swept, freed=done.freed + leftovers)


def execute(plan: GcPlan) -> Collected:
    """Carry out a plan, inside the ``store.alone`` in which it was made.

    Raises StoreFull when there is no room for the index to change or for a shard to be rewritten; leftovers are gone by then.
    """
    store = plan.store
    store.release()
    freed = _delete_leftovers(plan)
    try:
        for pin in plan.pins:
            drop_pin(store.root, pin.run)
        trash = _Trash(plan)
        # manifests go before the chunks that they name
        for item in (*plan.manifests, *plan.chunks):
            trash.take(item.path, item.nbytes)
        _drop(store, trash, (*plan.superseded, *plan.unreferenced))
        # after the drop: a repack that was cut short may have left, superseded, the very shard that this one writes
        repacked = repack(store, plan.sparse)
        _drop(store, trash, repacked.replaced)
    except StoreFull as error:
        raise StoreFull(
            f"{error} Before that, {freed:,} bytes of leftovers were deleted; the rest of the plan is not done."
        ) from error
    in_trash = trash.trashed + sum(batch.nbytes for batch in plan.kept_batches)
    from_when = plan.now + plan.rules.grace if in_trash else None
    return Collected(
        freed + trash.freed, trash.trashed, in_trash, from_when, repacked.written, 0, tuple(repacked.notes)
    )


class _Trash:
    """Where files go: to one batch of the trash, or away at once when it has no grace."""

    def __init__(self, plan: GcPlan) -> None:
        self.root = plan.store.root
        self.at_once = plan.rules.grace == 0
        self.batch = f"{int(plan.now)}-{uuid.uuid4().hex[:8]}"
        self.freed = self.trashed = 0

    def take(self, path: Path, nbytes: int) -> None:
        if self.at_once:
            files.remove(path)
            self.freed += nbytes
        else:
            files.to_trash(self.root, self.batch, path)
            self.trashed += nbytes


def _delete_leftovers(plan: GcPlan) -> int:
    """Delete what needs no change of the index to go; returns the bytes."""
    gone = (*plan.temporary, *plan.batches, *plan.damaged_indexes)
    for item in gone:
        files.delete_tree(plan.store.root, item.path)
    return sum(item.nbytes for item in gone)


def _drop(store: Store, trash: _Trash, entries: Iterable[ShardEntry]) -> None:
    """Take shards out of the index, then away."""
    entries = list(entries)
    if not entries:
        return
    numbers = [entry.number for entry in entries]
    try:
        store.index.drop(numbers)
        numbers = []
    except StoreFull:
        if not trash.at_once:
            raise
        # deleting the files makes the room that the index needs; if not, the next writer drops shards that are gone
    for entry in entries:
        trash.take(shard_path(store.root, entry.name), entry.nbytes)
    if numbers:
        store.index.drop(numbers)
