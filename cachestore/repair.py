"""Repair: what is damaged goes to quarantine, what is sound of it is kept, and the index is filled anew. Nothing is changed in place.

A plan says what is damaged, what can be salvaged, what is lost, and what to build again; carrying it out writes beside and swaps. Cut
short anywhere, it leaves a store of which nothing sound is lost, and the next repair finishes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from cachestore import (
    files,
    header,
    index_file,
    layout,
    locks,
    reconcile,
    repair_logs,
    repair_records,
    shard,
)
from cachestore.errors import DamageError, StoreFormatError, StoreNotFound
from cachestore.index import Index
from cachestore.repair_plan import RepairPlan, plan
from cachestore.salvage import Salvaged, salvage
from cachestore.store import root_of
from cachestore.verify import Progress


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
    _refuse_no_store(root)  # before a lock is made there
    # not Store.alone: a store that needs repair may not open
    with locks.held(root, "builders", exclusive=True, timeout=wait, tell=tell):
        planned = plan(root, progress)
        show(planned)
        _carry_out(planned)
    return planned


def _carry_out(planned: RepairPlan) -> None:
    root = planned.root
    if planned.empty:
        return
    files.sweep_temporary(root)  # nobody else writes
    if planned.header:
        if os.path.lexists(root / "store.json"):
            files.to_quarantine(root, root / "store.json")
        header.renew(root)
    for one in planned.displaced:
        if not one.left:
            files.put_back(root, root / one.path, layout.content_path(root, shard.FOLDER, one.name, shard.SUFFIX))
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
        for record in planned.records:
            repair_records.carry_out(root, record)
        for log in planned.logs:
            repair_logs.carry_out(root, log)


def _refuse_no_store(root: Path) -> None:
    """Raises StoreNotFound and StoreFormatError for what is no store; one may have lost its header."""
    try:
        header.check(root)
    except (StoreFormatError, StoreNotFound):
        if not all((root / folder).is_dir() for folder in (shard.FOLDER, "index")):
            raise


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
