"""`cachestore repair`: damage goes to quarantine, what is sound stays. Starts without torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, output

if TYPE_CHECKING:
    from cachestore.repair import Incomplete, RepairPlan

_SHOWN = 20


def command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done; change nothing.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for builders to finish.")
    ] = 30.0,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Repair the store.

    Reads all of it first, as verify --read-data does. Damaged files are moved to the folder quarantine of the store;
    vectors of damaged shards that pass their checks are kept in new ones, and the index is filled anew
    from the shards. Then it says which data to build again: a build encodes only what was lost.
    Waits until nobody builds. A store without damage stays as it is.

    \b
    Examples:
        cachestore repair --dry-run
        cachestore repair

    \b
    Exit codes:
        0    done, or nothing to do
        3    the store is missing, locked, full, not writable or of another format
    """
    from cachestore.repair import repair

    out = output.Output(as_json, quiet)
    show: Callable[[RepairPlan], None] = _nothing if as_json or dry_run else partial(_show, out)
    with out.bar() as bar:
        progress = partial(bar.bytes, "read") if bar else None
        plan = repair(store, dry_run=dry_run, wait=wait, show=show, tell=out.say, progress=progress)
    out.result(summary(plan, dry_run), text(plan, dry_run))


def summary(plan: RepairPlan, dry_run: bool) -> dict[str, Any]:
    """The JSON object of a repair."""
    return {
        "store": str(plan.root),
        "dry_run": dry_run,
        "shards": [{"name": mend.name, "salvaged": mend.salvaged, "why": mend.why} for mend in plan.shards],
        "quarantined": [*(mend.path for mend in plan.shards), *plan.files],
        "logs": [
            {"name": log.name, "versions": len(log.versions), "dropped": log.dropped, "mended": log.mended}
            for log in plan.logs
        ],
        "header": plan.header,
        "index": list(plan.index),
        "build": [{"what": one.label, "vectors": one.vectors, "rows": one.rows} for one in plan.build],
        "whole": list(plan.whole),
    }


def text(plan: RepairPlan, dry_run: bool) -> str:
    """What was done, or would be, and what to build."""
    if plan.empty and not plan.build:
        return "no damage found; nothing to repair"
    lines = _steps(plan) if dry_run else []
    for one in plan.build[:_SHOWN]:
        lines.append(f"build again: {one.label}: {_lacks(one)}")
    if len(plan.build) > _SHOWN:
        lines.append(f"… and {len(plan.build) - _SHOWN:,} more: see --json")
    if not plan.build:
        lines.append("nothing is lost that a name, tag or run needs")
    else:
        lines.append(
            f"whole: {', '.join(plan.whole[:_SHOWN]) or 'nothing else'}{', …' if len(plan.whole) > _SHOWN else ''}"
        )
    lines.append("nothing was changed" if dry_run else "done" if not plan.empty else "there was nothing to repair")
    return "\n".join(lines)


def _show(out: output.Output, plan: RepairPlan) -> None:
    """The plan on stderr, before it is carried out."""
    for line in _steps(plan):
        out.say(line)


def _nothing(plan: RepairPlan) -> None:
    """The plan is the result, or part of it."""


def _steps(plan: RepairPlan) -> list[str]:
    lines = ["store.json is written anew"] if plan.header else []
    lines += [
        f"shard {mend.name[:12]} goes to quarantine, {mend.salvaged:,} of its rows to a new one. {mend.why}"
        for mend in plan.shards[:_SHOWN]
    ]
    lines += [f"{path} goes to quarantine" for path in plan.files[:_SHOWN]]
    more = max(0, len(plan.shards) - _SHOWN) + max(0, len(plan.files) - _SHOWN)
    lines += [f"… and {more:,} more files: see --json"] if more else []
    lines += [
        f"the log of {log.name} keeps {len(log.versions):,} versions, {log.mended:,} of them mended, and loses {log.dropped:,}"
        for log in plan.logs
    ]
    lines += [f"the index is filled anew. {plan.index[0]}"] if plan.index else []
    return lines


def _lacks(one: Incomplete) -> str:
    if one.vectors is None:
        return "its manifest is gone"
    parts = [f"{one.vectors:,} vectors are gone"] if one.vectors else []
    parts += [f"the keys of {one.rows:,} rows are gone, their vectors may be there"] if one.rows else []
    return "; ".join(parts)
