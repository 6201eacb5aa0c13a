"""`cachestore repair`: damage goes to quarantine, what is sound stays. Starts without torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachestore.errors import DamageError
from cli import options, output

if TYPE_CHECKING:
    from cachestore.repair_plan import Incomplete, RepairPlan

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
    from the shards. A shard's file that lies in a wrong folder goes back. Tags and pins of which the manifest
    can be read are written anew: check them. Then it says what is lost, and which data to build again:
    a build encodes only what was lost. Waits until nobody builds. A store without damage stays as it is.

    \b
    Examples:
        cachestore repair --dry-run
        cachestore repair

    \b
    Exit codes:
        0    the store is whole, as it was or by this (with --dry-run: would be)
        3    the store is missing, locked, full, not writable or of another format
        4    done, and something is lost or needs a build, as said
    """
    from cachestore.repair import repair

    out = output.Output(as_json, quiet)
    show: Callable[[RepairPlan], None] = _nothing if as_json or dry_run else partial(_show, out)
    with out.bar() as bar:
        progress = partial(bar.bytes, "read") if bar else None
        plan = repair(store, dry_run=dry_run, wait=wait, show=show, tell=out.say, progress=progress)
    out.result(summary(plan, dry_run), text(plan, dry_run))
    if not plan.complete:
        raise typer.Exit(DamageError.exit_code)


def summary(plan: RepairPlan, dry_run: bool) -> dict[str, Any]:
    """The JSON object of a repair."""
    return {
        "store": str(plan.root),
        "dry_run": dry_run,
        "shards": [{"name": mend.name, "salvaged": mend.salvaged, "why": mend.why} for mend in plan.shards],
        "displaced": [{"path": one.path, "name": one.name, "left": one.left} for one in plan.displaced],
        "quarantined": [*(mend.path for mend in plan.shards), *plan.files],
        "logs": [
            {"name": log.name, "versions": len(log.versions), "dropped": log.dropped, "mended": log.mended}
            for log in plan.logs
        ],
        "rewritten": [{"path": one.path, "said": one.said} for one in plan.records],
        "header": plan.header,
        "index": list(plan.index),
        "lost": [{"what": one.what, "said": one.said} for one in plan.lost],
        "build": [{"what": one.label, "vectors": one.vectors, "rows": one.rows} for one in plan.build],
        "whole": list(plan.whole),
    }


def text(plan: RepairPlan, dry_run: bool) -> str:
    """What was done, or would be, and what to build."""
    if plan.empty and plan.complete:
        return "\n".join([*(_left(plan) if dry_run else []), "no damage found; nothing to repair"])
    lines = _steps(plan) if dry_run else []
    lines += _capped([f"lost: {one.what}: {one.said}" for one in plan.lost])
    lines += _capped([f"build again: {one.label}: {_lacks(one)}" for one in plan.build])
    if plan.complete:
        lines.append("nothing is lost that a name, tag or run needs")
    else:
        lines.append(
            f"whole: {', '.join(plan.whole[:_SHOWN]) or 'nothing else'}{', …' if len(plan.whole) > _SHOWN else ''}"
        )
    if plan.empty:
        lines.append("nothing can be repaired without a build")
    else:
        lines.append("nothing was changed" if dry_run else "done")
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
        f"{one.path} goes back to its place as shard {one.name[:12]}" for one in plan.displaced[:_SHOWN] if not one.left
    ]
    lines += _left(plan)
    lines += [
        f"shard {mend.name[:12]} goes to quarantine, {mend.salvaged:,} of its rows to a new one. {mend.why}"
        for mend in plan.shards[:_SHOWN]
    ]
    lines += [f"{path} goes to quarantine" for path in plan.files[:_SHOWN]]
    more = sum(max(0, len(them) - _SHOWN) for them in (plan.displaced, plan.shards, plan.files))
    lines += [f"… and {output.count(more, 'more file')}: see --json"] if more else []
    lines += [f"{one.path} is written anew, {one.said}" for one in plan.records[:_SHOWN]]
    lines += [
        f"the log of {log.name} keeps {output.count(len(log.versions), 'version')}, {log.mended:,} of them mended, "
        f"and loses {log.dropped:,}"
        for log in plan.logs
    ]
    lines += [f"the index is filled anew. {plan.index[0]}"] if plan.index else []
    return lines


def _left(plan: RepairPlan) -> list[str]:
    """What is not where it should be, and stays."""
    return [f"{one.path} is left: {one.left}" for one in plan.displaced[:_SHOWN] if one.left]


def _capped(lines: list[str]) -> list[str]:
    return [*lines[:_SHOWN], f"… and {len(lines) - _SHOWN:,} more: see --json"] if len(lines) > _SHOWN else lines


def _lacks(one: Incomplete) -> str:
    if one.vectors is None:
        return "its manifest is gone"
    are = "is" if one.vectors == 1 else "are"
    parts = [f"{output.count(one.vectors, 'vector')} {are} gone"] if one.vectors else []
    parts += [f"the keys of {output.count(one.rows, 'row')} are gone, their vectors may be there"] if one.rows else []
    return "; ".join(parts)
