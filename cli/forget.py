"""`cachestore forget`: remove what a store knows of some texts, files or rows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cachestore
from cachestore.dataset import MAX_CELL_BYTES
from cachestore.errors import DataError, UsageError
from cli import options, output
from cli.gc import open_existing

if TYPE_CHECKING:
    from cachestore.forget import Forgotten
    from cachestore.forget_plan import ForgetPlan

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_ROWS = 10_000_000
_AGAIN = "A build of a source that still has them encodes them again: remove them there first."


def command(
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", help="A text, exactly as it was; repeat for more.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", metavar="PATH", help="A file whose bytes are the text, - for stdin; repeat for more."),
    ] = None,
    rows: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--rows", metavar="NAME[@V] ROWS", help="Rows of a data set, counted from 0: reviews@3 3,17,40-50."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be forgotten; change nothing.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for builds and readers to end.")
    ] = 30.0,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove the vectors and keys of texts from every file of the store.

    Shards, manifests and the index are rewritten without them; versions, tags and runs lead to what is left. All trash and
    quarantined files go as well. Run directories, source files, exports and backups are out of scope. A forget that was
    cut short is finished by the next.

    \b
    Examples:
        cachestore forget --text 'Call me on 555 0100' --dry-run
        printf %s "$MESSAGE" | cachestore forget --file -
        cachestore forget --rows reviews 3,17,40-50 --wait 600

    \b
    Exit codes:
        0    done; also when the store knew nothing of them
        2    wrong usage
        3    the store is missing, full, not writable, or in use by a build or a reader of those vectors
        4    a damaged shard cannot be searched: repair first
    """
    from cachestore.forget import forget
    from cachestore.forget_plan import plan_forget

    out = output.Output(as_json, quiet)
    payloads = [_utf8(each) for each in text or []] + [_bytes(path) for path in file or []]
    chosen = None if rows is None else (rows[0], _rows(rows[1]))
    if not payloads and chosen is None:
        raise UsageError("Say what to forget: --text TEXT, --file PATH, or --rows NAME 3,17,40-50.")
    if dry_run:
        with cachestore.open_store(store, mode="r") as opened:
            plan = plan_forget(opened, payloads, chosen)
        out.result({"dry_run": True, "plan": _plan(plan)}, _plan_text(plan) + "\nnothing was changed")
        return
    with open_existing(store) as opened:
        show = None if as_json else lambda plan: out.result({}, _plan_text(plan))
        plan, done = forget(opened, payloads, chosen, wait=wait, tell=out.say, show=show)
    out.result({"dry_run": False, "plan": _plan(plan), "done": _done(done)}, _done_text(done))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError("A text given by --text is not UTF-8. Put it into a file and give that by --file.") from None


def _bytes(path: Path) -> bytes:
    """The bytes of a text; a store keeps none that is longer than MAX_CELL_BYTES."""
    try:
        if str(path) == "-":
            found = sys.stdin.buffer.read(MAX_CELL_BYTES + 1)
        else:
            with path.open("rb") as file:
                found = file.read(MAX_CELL_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Name a file whose bytes are the text.") from error
    if len(found) > MAX_CELL_BYTES:
        raise DataError(
            f"{path} is larger than {MAX_CELL_BYTES >> 20} MiB, and no text in a store is. Name another file."
        )
    return found


def _rows(text: str) -> list[int]:
    rows: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first or last - first >= _MOST_ROWS:
            raise UsageError(
                f"{part!r} in --rows is no row, nor a range of rows. Write them like 3,17,40-50, counted from 0."
            )
        rows += range(first, last + 1)
    return rows


def _plan(plan: ForgetPlan) -> dict[str, Any]:
    return {
        "texts": plan.payloads,
        "vectors": plan.vectors,
        "shards": [
            {"shard": held.name, "rows": len(held.rows), "of": held.total, "bytes": held.nbytes} for held in plan.shards
        ],
        "manifests": [manifest.id for manifest in plan.manifests],
        "versions": list(plan.versions),
        "tags": list(plan.tags),
        "runs": list(plan.runs),
        "bytes_to_purge": plan.purged,
        "out_of_scope": {"sources": list(plan.sources), "runs": list(plan.runs)},
        "notes": list(plan.notes),
    }


def _plan_text(plan: ForgetPlan) -> str:
    rewritten = output.size(sum(held.nbytes for held in plan.shards))
    lines = [
        f"{plan.vectors:,} vectors in {len(plan.shards):,} shards ({rewritten}) and "
        f"their keys in {len(plan.manifests):,} manifests",
        *(f"version: {label}" for label in plan.versions),
        *(f"tag: {label}" for label in plan.tags),
        *(f"run: {label}" for label in plan.runs),
    ]
    if plan.purged:
        lines.append(f"with them goes all of trash, quarantine and leftovers: {output.size(plan.purged)}")
    lines += [f"not touched, may still hold the text: {path}" for path in plan.sources]
    lines += [f"not touched, may hold what was learnt from it: {path}" for path in plan.runs]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _done(done: Forgotten) -> dict[str, Any]:
    return {
        "vectors": done.vectors,
        "cells": done.cells,
        "shards": dict(done.shards),
        "manifests": dict(done.manifests),
        "bytes_purged": done.purged,
        "notes": [_AGAIN],
    }


def _done_text(done: Forgotten) -> str:
    lines = [
        f"{done.vectors:,} vectors and {done.cells:,} cells forgotten; {len(done.shards):,} shards and "
        f"{len(done.manifests):,} manifests rewritten, {output.size(done.purged)} of leftovers purged",
        "no file of the store has them any more; the audit is in audit.jsonl",
        _AGAIN,
    ]
    return "\n".join(lines)
