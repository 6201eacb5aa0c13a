"""Forgetting: removes the vectors and keys of some payloads from every file of the store, while nobody builds or reads those shards.

In this order: a journal of the keys; chunks and manifests without them, which take the place of the old; shards without them; what may
hold old bytes (trash, quarantine, temporary files, damaged indexes, the index itself, of which a new generation is filled); a line in
``audit.jsonl``; the journal goes. A forgetting that dies anywhere loses nothing else, and the next one finishes it first.
"""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from cachestore import files, forget_journal, references, shard
from cachestore import manifest as manifests
from cachestore.errors import StoreLocked
from cachestore.forget_plan import ForgetPlan, plan_forget, plan_keys
from cachestore.forget_scope import purgeable
from cachestore.gc_rules import chunk_path, shard_path
from cachestore.keys import SIZE
from cachestore.manifest import FORGOTTEN, PRESENT, Manifest
from cachestore.marks import chunk_keys
from cachestore.store import Store

FORMAT: Final = 1
_AUDIT = "audit.jsonl"
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Forgotten:
    """What was forgotten."""

    vectors: int
    cells: int
    """of manifests that lost their key; those of a chunk that versions share count once"""
    shards: Mapping[str, str | None]
    """old → new id, None where no row was left"""
    manifests: Mapping[str, str]
    """old → new id"""
    purged: int
    """bytes of trash, quarantine, temporary files and damaged indexes"""
    finished: Forgotten | None = None
    """what was left to do of a forgetting that had been cut short, and was done first"""


def forget(
    store: Store,
    payloads: Iterable[bytes] = (),
    rows: tuple[str, Sequence[int]] | None = None,
    *,
    wait: float = 30.0,
    tell: Callable[[str], None] | None = None,
    show: Callable[[ForgetPlan], None] | None = None,
) -> tuple[ForgetPlan, Forgotten]:
    """Plan, ``show`` and execute a forgetting; first finishes one that was cut short. Does nothing where the plan is idle.

    ``tell`` is called if this has to wait. Raises StoreLocked when builders, or readers of shards with such vectors, are still there
    after ``wait`` seconds; nothing is changed then. Raises StoreNotWritable, and what ``plan_forget`` raises.
    """
    began = time.monotonic()
    with store.alone(wait, tell):

        def rest() -> float:
            return max(0.0, wait - (time.monotonic() - began))

        cut_short = forget_journal.journal(store.root)
        finished = None if cut_short is None else execute(plan_keys(store, cut_short), rest(), tell)
        plan = plan_forget(store, payloads, rows)
        if show:
            show(plan)
        done = Forgotten(0, 0, {}, {}, 0) if plan.idle else execute(plan, rest(), tell)
        return plan, replace(done, finished=finished)


def resume(
    store: Store,
    *,
    wait: float = 30.0,
    tell: Callable[[str], None] | None = None,
    show: Callable[[ForgetPlan], None] | None = None,
) -> tuple[ForgetPlan, Forgotten] | None:
    """Plan, ``show`` and do what is left of a forgetting that was cut short; None when there is none. Raises as ``forget``."""
    with store.alone(wait, tell):
        cut_short = forget_journal.journal(store.root)
        if cut_short is None:
            return None
        plan = plan_keys(store, cut_short)
        if show:
            show(plan)
        return plan, execute(plan, wait, tell)


def execute(plan: ForgetPlan, wait: float = 0.0, tell: Callable[[str], None] | None = None) -> Forgotten:
    """Carry out a plan, inside the ``store.alone`` in which it was made."""
    store, root = plan.store, plan.store.root
    store.release()
    _await_readers(plan, wait, tell)
    if len(plan.keys):
        forget_journal.begin(root, plan.keys.tolist())
    replaced, cells = _rewrite_manifests(plan)
    references.supersede(root, replaced)
    for identity in replaced:
        files.remove(manifests.manifest_path(root, identity))
    shards = _rewrite_shards(plan)
    for identity in (*plan.chunks, *plan.loose_chunks):
        files.remove(chunk_path(root, identity))
    purged = purgeable(root)
    for item in purged:
        files.delete_tree(root, item.path)
    store.rebuild_index()  # free pages of the old one may have such keys
    done = Forgotten(plan.vectors, cells, shards, replaced, sum(item.nbytes for item in purged))
    _audit(root, done)
    forget_journal.end(root)
    return done


def _await_readers(plan: ForgetPlan, wait: float, tell: Callable[[str], None] | None) -> None:
    """Wait until nobody has a shard with such vectors mapped. Raises StoreLocked after ``wait`` seconds."""
    deadline = time.monotonic() + wait
    waiting = [held.name for held in plan.shards]
    told = False
    while waiting := [name for name in waiting if files.held_by_readers(shard_path(plan.store.root, name))]:
        if time.monotonic() >= deadline:
            raise StoreLocked(
                f"{len(waiting)} shards of {plan.store.root} with such vectors are in use by readers, and nothing was forgotten. "
                "Wait for them to finish, or stop them, and run again; --wait gives them more time."
            )
        if tell and not told:
            tell(f"Waiting for readers of {len(waiting)} shards …")
            told = True
        time.sleep(_POLL_SECONDS)


def _rewrite_manifests(plan: ForgetPlan) -> tuple[dict[str, str], int]:
    """Write chunks and manifests without the keys; returns old → new manifest ids, and the cells nulled."""
    root = plan.store.root
    chunks: dict[str, str] = {}
    replaced: dict[str, str] = {}
    cells = 0
    for manifest in plan.manifests:
        for at, (identity, _) in enumerate(manifest.chunks):
            if identity in plan.chunks and identity not in chunks:
                chunks[identity], nulled = _rewrite_chunk(root, manifest, at, plan.chunks[identity])
                cells += nulled
        new = [(chunks.get(identity, identity), rows) for identity, rows in manifest.chunks]
        replaced[manifest.id] = manifests.write_manifest(root, manifest.columns, new).id
    return replaced, cells


def _rewrite_chunk(root: Path, manifest: Manifest, at: int, gone: Mapping[str, Any]) -> tuple[str, int]:
    columns, all_keys, all_reasons = [], [], []
    cells = 0
    for column, old_keys, old_reasons in chunk_keys(root, manifest, at):
        keys, reasons = old_keys.copy(), old_reasons.copy()
        rows = gone[column][reasons[gone[column]] == PRESENT]
        keys[rows] = np.zeros(len(rows), f"V{SIZE}")
        reasons[rows] = FORGOTTEN
        cells += len(rows)
        columns.append(column)
        all_keys.append(keys)
        all_reasons.append(reasons)
    return manifests.write_chunk(root, columns, all_keys, all_reasons), cells


def _rewrite_shards(plan: ForgetPlan) -> dict[str, str | None]:
    """Write shards without the rows, which take the place of the old; returns old → new ids."""
    store = plan.store
    numbers = {entry.name: entry.number for entry in store.index.shards().values()}
    replaced: dict[str, str | None] = {}
    for held in plan.shards:
        found = shard.open_shard(store.root, held.name)
        keep = np.delete(np.arange(held.total), held.rows)
        replaced[held.name] = None
        if len(keep):
            keys = found.keys[keep]
            number, _ = store.put(found.spec, keys.tolist(), found.take(keep, keys), moved=True)
            replaced[held.name] = store.index.names([number])[number]
    store.index.drop(numbers[name] for name in replaced if name in numbers)
    for name in replaced:
        files.remove(shard_path(store.root, name))
    return replaced


def _audit(root: Path, done: Forgotten) -> None:
    """Add what was done, without content or keys, to the audit."""
    path = root / _AUDIT
    try:
        before = files.read_small(path)
    except FileNotFoundError:
        before = b""
    line = {
        "format": FORMAT,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "user": _user(),
        "vectors": done.vectors,
        "cells": done.cells,
        "shards": dict(done.shards),
        "manifests": dict(done.manifests),
        "purged": done.purged,
    }
    files.replace_small(root, path, before + (json.dumps(line, sort_keys=True) + "\n").encode())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such name on this machine
        return str(os.getuid())
