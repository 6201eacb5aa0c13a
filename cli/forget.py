"""`cachestore forget`: remove what a store knows of some texts, files or rows."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cachestore
from cachestore.errors import DataError, UsageError
from cachestore.picture_files import MAX_BYTES
from cli import options, output
from cli.gc import open_existing

if TYPE_CHECKING:
    from cachestore.forget import Forgotten
    from cachestore.forget_plan import ForgetPlan

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_MOST_ROWS = 10_000_000
_AGAIN = "A build of a source that still has them encodes them again: remove them there first."
_NOTHING = "nothing of this is stored under any encoder"
_SHOWN = 20


def command(
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="TEXT", help="A text, exactly as it was; repeat for more.")
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", metavar="PATH", help="A text or picture as a file, - for stdin; repeat for more."),
    ] = None,
    rows: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--rows", metavar="NAME[@V] ROWS", help="Rows of a data set, counted from 0: reviews@3 3,17,40-50."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Finish a forget that was cut short, and forget nothing else.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be forgotten; change nothing.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for builds and readers to end.")
    ] = 30.0,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove the vectors and keys of texts and pictures from every file of the store.

    Shards, manifests and the index are rewritten without them; versions, tags and runs lead to what is left. All trash and
    quarantined files go as well. Run directories, source files, exports, backups, and files in the store's folder that are
    not the store's are out of scope. A text is its bytes, to the last newline, and a file is one text or picture. A forget that was cut
    short is finished by the next, or by --resume.

    \b
    Examples:
        cachestore forget --text 'Call me on 555 0100' --dry-run
        printf %s "$MESSAGE" | cachestore forget --file -
        cachestore forget --rows reviews 3,17,40-50 --wait 600

    \b
    Exit codes:
        0    done; also when the store knew nothing of them, which it says
        2    wrong usage
        3    the store is missing, full, not writable, or in use by a build or a reader of those vectors
        4    a damaged shard cannot be searched: repair first; or forgetting.json, of a forget cut short, cannot be read
    """
    from cachestore import forget as forgetting
    from cachestore.forget_journal import interrupted, journal
    from cachestore.forget_plan import plan_forget, plan_keys

    out = output.Output(as_json, quiet)
    if resume and (text or file or rows):
        raise UsageError("--resume finishes what another forget began. Forget these texts by a second command.")
    if not (resume or text or file or rows):
        raise UsageError("Say what to forget: --text TEXT, --file PATH, or --rows NAME 3,17,40-50.")
    given = [("a --text", _utf8(each)) for each in text or []] + [(_label(path), _bytes(path)) for path in file or []]
    payloads = [payload for _, payload in given]
    chosen = None if rows is None else (rows[0], _rows(rows[1]))
    if dry_run:
        with cachestore.open_store(store, mode="r") as opened:
            plan = plan_keys(opened, journal(opened.root) or ()) if resume else plan_forget(opened, payloads, chosen)
            line = None if resume else interrupted(opened.root)
        hints = _hints(given, plan)
        lines = [_plan_text(plan), *_hint_lines(hints), *([line] if line else []), "nothing was changed"]
        out.result({"dry_run": True, "plan": _plan(plan), "hints": hints}, "\n".join(lines))
        return
    with open_existing(store) as opened:
        show = None if as_json else lambda plan: out.result({}, _plan_text(plan))
        if not resume:
            plan, done = forgetting.forget(opened, payloads, chosen, wait=wait, tell=out.say, show=show)
        elif (left := forgetting.resume(opened, wait=wait, tell=out.say, show=show)) is not None:
            plan, done = left
        else:
            out.result({"dry_run": False, "plan": None, "done": None}, "no forget was cut short; nothing was done")
            return
    hints = _hints(given, plan)
    summary = {"dry_run": False, "plan": _plan(plan), "done": _done(plan, done), "hints": hints}
    out.result(summary, "\n".join([*_done_lines(plan, done), *_hint_lines(hints)]))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise UsageError("A text given by --text is not UTF-8. Put it into a file and give that by --file.") from None


def _label(path: Path) -> str:
    return "stdin" if str(path) == "-" else str(path)


def _bytes(path: Path) -> bytes:
    """The bytes of a text or a picture; a store keeps none that is longer than MAX_BYTES."""
    try:
        if str(path) == "-":
            found = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                found = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Name a file whose bytes are the text or the picture."
        ) from error
    if len(found) > MAX_BYTES:
        raise DataError(
            f"{path} is larger than {MAX_BYTES >> 20} MiB, and no text or picture in a store is. Name another file."
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
        "unknown_texts": len(plan.unknown),
        "vectors": plan.vectors,
        "shards": [
            {"shard": held.name, "rows": len(held.rows), "of": held.total, "bytes": held.nbytes} for held in plan.shards
        ],
        "manifests": [manifest.id for manifest in plan.manifests],
        "versions": list(plan.versions),
        "tags": list(plan.tags),
        "runs": list(plan.runs),
        "bytes_to_purge": plan.purged,
        "out_of_scope": {"sources": list(plan.sources), "runs": list(plan.runs), "foreign": list(plan.foreign)},
        "notes": list(plan.notes),
    }


def _plan_text(plan: ForgetPlan) -> str:
    lines = [_found(plan)]
    if plan.found and plan.unknown:
        lines.append(f"of {output.count(plan.payloads, 'text')}, {len(plan.unknown):,} not stored under any encoder")
    lines += [f"version: {label}" for label in plan.versions]
    lines += [f"tag: {label}" for label in plan.tags]
    lines += [f"run: {label}" for label in plan.runs]
    if plan.purged:
        lines.append(f"with this goes all of trash, quarantine and leftovers: {output.size(plan.purged)}")
    lines += [f"not touched, may still hold the text: {path}" for path in plan.sources]
    lines += [f"not touched, may hold what was learnt from it: {path}" for path in plan.runs]
    lines += [f"not looked at, not the store's: {path}" for path in plan.foreign[:_SHOWN]]
    if len(plan.foreign) > _SHOWN:
        lines.append(f"not looked at: {len(plan.foreign) - _SHOWN:,} more, see --json")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def _found(plan: ForgetPlan) -> str:
    if not plan.found:
        return _NOTHING
    rewritten = output.size(sum(held.nbytes for held in plan.shards))
    return (
        f"{output.count(plan.vectors, 'vector')} in {output.count(len(plan.shards), 'shard')} ({rewritten}) and "
        f"the keys in {output.count(len(plan.manifests), 'manifest')}"
    )


def _done(plan: ForgetPlan, done: Forgotten) -> dict[str, Any]:
    return {
        **_counts(done),
        "finished_first": None if done.finished is None else _counts(done.finished),
        "notes": [_AGAIN] if plan.found else [],
    }


def _counts(done: Forgotten) -> dict[str, Any]:
    return {
        "vectors": done.vectors,
        "cells": done.cells,
        "shards": dict(done.shards),
        "manifests": dict(done.manifests),
        "bytes_purged": done.purged,
    }


def _done_lines(plan: ForgetPlan, done: Forgotten) -> list[str]:
    lines = []
    if done.finished is not None:
        lines.append(f"finished first, of a forget that was cut short: {_counts_text(done.finished)}")
    if plan.idle:
        return [*lines, "nothing was done"]
    if not plan.found:
        purged = output.size(done.purged)
        return [
            *lines,
            f"{purged} of leftovers purged and the index filled anew: what was removed before may have lain there",
        ]
    whose = "no file of the store's own" if plan.foreign else "no file of the store"
    what = "has what was found of them any more" if plan.unknown else "has them any more"
    return [*lines, _counts_text(done), f"{whose} {what}; the audit is in audit.jsonl", _AGAIN]


def _counts_text(done: Forgotten) -> str:
    return (
        f"{output.count(done.vectors, 'vector')} and {output.count(done.cells, 'cell')} forgotten; "
        f"{output.count(len(done.shards), 'shard')} and {output.count(len(done.manifests), 'manifest')} rewritten, "
        f"{output.size(done.purged)} of leftovers purged"
    )


def _hints(given: Sequence[tuple[str, bytes]], plan: ForgetPlan) -> list[str]:
    """What may be wrong with the texts that the store does not know."""
    hints = []
    for label, payload in given:
        lines = payload.count(b"\n") + (not payload.endswith(b"\n"))
        if payload not in plan.unknown:
            continue
        if label != "a --text" and lines > 1:
            hints.append(
                f"{label} is taken as one text, of {output.count(lines, 'line')}. "
                "For rows of a data set: cachestore forget --rows NAME 3,17,40-50"
            )
        elif payload.endswith(b"\n"):
            hints.append(
                f"{label} ends in a newline, which counts as a part of the text. "
                'Without it: printf %s "$TEXT" | cachestore forget --file -'
            )
    return hints


def _hint_lines(hints: Sequence[str]) -> list[str]:
    return [f"hint: {hint}" for hint in hints[:_SHOWN]]
