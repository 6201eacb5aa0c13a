"""`cachestore gc`: free what a store no longer needs."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cachestore
from cachestore.errors import DamageError, UsageError
from cli import options, output

if TYPE_CHECKING:
    from cachestore.gc import Collected
    from cachestore.gc_rules import GcPlan

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "b": 1} | {
    prefix + unit: base ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for unit, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]*)")


def command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would go; change nothing.")] = False,
    unreferenced_older_than: Annotated[
        str | None,
        typer.Option(
            "--unreferenced-older-than",
            metavar="AGE",
            help="Let go what no name, tag or run refers to and is at least this old: 30d, 12h, or 0 for all of it.",
        ),
    ] = None,
    keep_last: Annotated[
        int | None,
        typer.Option(
            "--keep-last",
            metavar="N",
            help="Keep the newest N versions of each name; older ones go unless they are tagged or a run's.",
        ),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            "--max-bytes",
            metavar="SIZE",
            help="Let go vectors that nothing refers to, oldest first, until the shards take no more: 50GB, 500MiB.",
        ),
    ] = None,
    repack: Annotated[
        bool,
        typer.Option(
            "--repack",
            help="Rewrite shards of which less than 75 % is needed, with what is needed. Rows that nothing refers to "
            "are only dropped together with --unreferenced-older-than or --max-bytes.",
        ),
    ] = False,
    drop_missing_runs: Annotated[
        bool,
        typer.Option(
            "--drop-missing-runs",
            help="Keep nothing for runs whose directory is gone, or was moved and not used since.",
        ),
    ] = False,
    grace: Annotated[
        str, typer.Option("--grace", metavar="AGE", help="How long the trash is kept; 0 deletes at once.")
    ] = "1d",
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for running builds to end.")
    ] = 30.0,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Free what the store no longer needs, once no build runs.

    Without options only leftovers go: temporary files, trash past its grace, damaged indexes, and shards all
    of whose rows other shards hold. Names, their versions, tags and runs keep what they refer to. What goes is moved to
    the trash, and deleted by a later gc when its grace is over. Readers are never disturbed. A run is known by its
    directory: after you move one, predict or evaluate with it pins it at its new place.

    \b
    Examples:
        cachestore gc --dry-run --unreferenced-older-than 30d
        cachestore gc --repack --unreferenced-older-than 30d
        cachestore gc --keep-last 3 --unreferenced-older-than 0 --repack
        cachestore gc --max-bytes 50GB --drop-missing-runs
        cachestore gc --grace 0        empty the trash now

    \b
    Exit codes:
        0    done
        2    wrong usage
        3    the store is missing, full, not writable, or in use by a build
        4    damage hides what is needed: nothing was changed; a gc without options still frees leftovers
    """
    from cachestore.gc import collect
    from cachestore.gc_plan import plan_gc
    from cachestore.gc_rules import Rules

    out = output.Output(as_json, quiet)
    rules = Rules(
        grace=_age("--grace", grace),
        unreferenced_older_than=None
        if unreferenced_older_than is None
        else _age("--unreferenced-older-than", unreferenced_older_than),
        keep_last=keep_last,
        max_bytes=None if max_bytes is None else _size("--max-bytes", max_bytes),
        repack=repack,
        drop_missing_runs=drop_missing_runs,
    )
    if dry_run:
        with cachestore.open_store(store, mode="r") as opened:
            plan = plan_gc(opened, rules)
        out.result({"dry_run": True, "plan": _plan(plan)}, _plan_text(plan) + "\nnothing was changed")
        return
    with open_existing(store) as opened:
        show = None if as_json else lambda plan: out.result({}, _plan_text(plan))
        plan, done = collect(opened, rules, wait=wait, tell=out.say, show=show)
    out.result({"dry_run": False, "plan": _plan(plan), "done": _done(done)}, _done_text(done))


def open_existing(path: Path | None) -> cachestore.Store:
    """The store at ``path``, for writing; unlike a build this makes none. Raises StoreNotFound."""
    with contextlib.suppress(DamageError):  # opening it for writing gives it a new index
        cachestore.open_store(path, mode="r").close()
    return cachestore.open_store(path)


def _age(option: str, text: str) -> float:
    match = _AMOUNT.fullmatch(text.strip().lower())
    if not match or match[2] not in _SECONDS or (not match[2] and float(match[1])):
        raise UsageError(f"{option} {text!r} is not an age. Write it like 30d, 12h, 45m, or 0.")
    return float(match[1]) * _SECONDS[match[2]]


def _size(option: str, text: str) -> int:
    match = _AMOUNT.fullmatch(text.strip().lower())
    if not match or match[2] not in _BYTES:
        raise UsageError(f"{option} {text!r} is not a size. Write it like 50GB, 50GiB, 500MB, or as plain bytes.")
    return int(float(match[1]) * _BYTES[match[2]])


def _plan(plan: GcPlan) -> dict[str, Any]:
    root = plan.store.root
    return {
        "temporary": [_item(root, item) for item in plan.temporary],
        "trash": [_item(root, item) for item in plan.batches],
        "damaged_indexes": [_item(root, item) for item in plan.damaged_indexes],
        "pins": [{"run": pin.run, "path": pin.path} for pin in plan.pins],
        "versions": list(plan.versions),
        "manifests": [_item(root, item) for item in plan.manifests],
        "chunks": [_item(root, item) for item in plan.chunks],
        "superseded_shards": [_shard(entry) for entry in plan.superseded],
        "unreferenced_shards": [_shard(entry) for entry in plan.unreferenced],
        "repacked_shards": [_shard(sparse.entry) | {"needed": len(sparse.rows)} for sparse in plan.sparse],
        "bytes_to_delete": plan.to_delete,
        "bytes_to_trash": plan.to_trash,
        "bytes_to_write": plan.to_write,
        "shards": plan.shards,
        "shard_bytes": plan.shard_bytes,
        "notes": list(plan.notes),
    }


def _item(root: Path, item: Any) -> dict[str, Any]:
    return {"path": str(item.path.relative_to(root)), "bytes": item.nbytes}


def _shard(entry: Any) -> dict[str, Any]:
    return {"shard": entry.name, "rows": entry.rows, "bytes": entry.nbytes}


def _plan_text(plan: GcPlan) -> str:
    first = "deleted" if plan.rules.grace == 0 else "to the trash"
    sparse = [sparse.entry for sparse in plan.sparse]
    groups = (
        ("temporary files", plan.temporary, "deleted"),
        ("trash past its grace", plan.batches, "deleted"),
        ("damaged indexes", plan.damaged_indexes, "deleted"),
        ("manifests", plan.manifests, first),
        ("chunks", plan.chunks, first),
        ("superseded shards", plan.superseded, first),
        ("unreferenced shards", plan.unreferenced, first),
        ("sparse shards", sparse, f"rewritten as about {output.size(plan.to_write)}, the old ones {first}"),
    )
    rows: list[tuple[object, ...]] = [
        (name, f"{len(group):,}", output.size(sum(item.nbytes for item in group)), what)
        for name, group, what in groups
        if group
    ]
    if plan.pins:
        rows.append(("pins of missing runs", f"{len(plan.pins):,}", "", "dropped"))
    lines = (
        [output.table(("what", "count", "bytes", ""), rows, right=("count", "bytes"))] if rows else ["nothing to do"]
    )
    if plan.versions:
        lines.append(f"versions that go: {', '.join(plan.versions)}")
    lines += [f"run that is no longer at {pin.path}" for pin in plan.pins]
    if plan.pins:
        lines.append(
            "a run that was only moved keeps its pin once it is used: cachestore predict RUN DATA, or evaluate"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _done(done: Collected) -> dict[str, Any]:
    return {
        "bytes_freed": done.freed,
        "bytes_trashed": done.trashed,
        "bytes_in_trash": done.in_trash,
        "trash_deleted_from": _utc(done.deleted_from),
        "bytes_written": done.written,
        "temporary_files": done.swept,
        "notes": list(done.notes),
    }


def _done_text(done: Collected) -> str:
    lines = [f"{output.size(done.freed)} freed, {output.size(done.trashed)} moved to the trash"]
    if done.swept:
        lines.append(f"{output.count(done.swept, 'temporary file')} deleted")
    if done.written:
        lines.append(f"{output.size(done.written)} written anew")
    if done.in_trash:
        when = _utc(done.deleted_from)
        lines.append(f"{output.size(done.in_trash)} in the trash; a gc after {when} deletes it, --grace 0 at once")
    return "\n".join([*lines, *(f"note: {note}" for note in done.notes)])


def _utc(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
