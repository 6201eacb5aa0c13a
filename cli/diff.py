"""`cachestore diff`: what differs between two versions of a data set. Starts without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachestore import references
from cachestore.store import readable_root
from cli import options, output

if TYPE_CHECKING:
    from cachestore.diff import Diff

REFERENCE = "NAME, NAME@VERSION, NAME@TAG, or a manifest's id or its first 8 digits."


def command(
    old: Annotated[str, typer.Argument(metavar="A", help=REFERENCE)],
    new: Annotated[str, typer.Argument(metavar="B", help="The same, to compare A with.")],
    rows: Annotated[int, typer.Option("--rows", metavar="N", min=0, help="List up to N row numbers of each kind.")] = 5,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell what differs from A to B: rows, columns, and the settings of encoders.

    Rows have no ids: two are the same when the texts of their cells are, in columns that have the same encoder in A and
    B. A row with another text in its place is changed. Where no column has the same encoder, rows cannot be compared.
    Row numbers are counted from 0.

    \b
    Examples:
        cachestore diff reviews@1 reviews
        cachestore diff reviews@v1 reviews@v2 --rows 100

    \b
    Exit codes:
        0    done
        2    wrong usage
        3    there is no store at that place, or A or B is not in it
        4    damage found in the store
    """
    from cachestore.diff import diff as compare

    root = readable_root(store)
    found = compare(root, references.manifest_of(root, old), references.manifest_of(root, new))
    summary = _summary(found, old, new, rows)
    output.Output(as_json, quiet).result(summary, _text(summary))


def _summary(found: Diff, old: str, new: str, limit: int) -> dict[str, Any]:
    rows: dict[str, Any] | None = None
    if found.rows is not None:
        rows = {"kept": found.rows.kept}
        for kind in ("added", "removed", "changed", "moved"):
            numbers = getattr(found.rows, kind)
            rows[kind] = {"count": len(numbers), "rows": numbers[:limit].tolist()}
    return {
        "old": {"reference": old, "manifest": found.old.id, "rows": found.old.rows},
        "new": {"reference": new, "manifest": found.new.id, "rows": found.new.rows},
        "same": found.same,
        "rows": rows,
        "compared_by": list(found.compared),
        "columns_added": list(found.columns_added),
        "columns_removed": list(found.columns_removed),
        "encoders": {column: [change.to_json() for change in changes] for column, changes in found.encoders.items()},
    }


def _text(summary: Mapping[str, Any]) -> str:
    old, new = (
        f"{side['reference']} ({side['manifest'][:12]}, {output.count(side['rows'], 'row')})"
        for side in (summary["old"], summary["new"])
    )
    if summary["same"]:
        return f"{old} and {new} are the same manifest"
    lines = [f"{old} → {new}", *_rows(summary)]
    lines += [f"column added: {column}" for column in summary["columns_added"]]
    lines += [f"column removed: {column}" for column in summary["columns_removed"]]
    for column, changes in summary["encoders"].items():
        lines.append(f"column {column}: its encoder changed")
        lines += [f"  {change['field']}: {_value(change, 'old')} → {_value(change, 'new')}" for change in changes]
    return "\n".join(lines)


def _rows(summary: Mapping[str, Any]) -> list[str]:
    rows = summary["rows"]
    if rows is None:
        return ["rows: they cannot be compared, because no column has the same encoder in both"]
    kinds = ("added", "removed", "changed", "moved")
    counts = ", ".join(f"{rows[kind]['count']:,} {kind}" for kind in kinds)
    lines = [f"rows: {counts}, {rows['kept']:,} kept; compared by {', '.join(summary['compared_by'])}"]
    for kind in kinds:
        numbers: Sequence[Any] = rows[kind]["rows"]
        if numbers:
            more = rows[kind]["count"] - len(numbers)
            shown = ", ".join(
                f"{number[0]} → {number[1]}" if isinstance(number, list) else str(number) for number in numbers
            )
            lines.append(f"  {kind}: {shown}" + (f", and {more:,} more (--rows {rows[kind]['count']})" if more else ""))
    return lines


def _value(change: Mapping[str, Any], side: str) -> str:
    return json.dumps(change[side], ensure_ascii=False) if side in change else "absent"
