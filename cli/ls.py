"""`cachestore ls`: what the store holds. Starts without torch."""

from __future__ import annotations

from typing import Any

import typer

import cachestore
from cachestore.encoders import label
from cachestore.errors import DamageError
from cachestore.store import Name
from cli import options, output


def command(
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List the data sets of the store.

    With their versions, rows and encoders, and the size of their vectors.

    \b
    Example:
        cachestore ls --json

    \b
    Exit codes:
        0    done
        3    there is no store at that place, or it cannot be read
        4    damage found in the store
    """
    with cachestore.open_store(store, mode="r") as opened:
        names = opened.names()
        root = opened.root
    summary = {"store": str(root), "names": [_entry(name) for name in names]}
    output.Output(as_json, quiet).result(summary, _text(summary))
    if any(name.manifest is None for name in names):
        raise typer.Exit(DamageError.exit_code)


def _entry(name: Name) -> dict[str, Any]:
    if name.manifest is None:
        return {"name": name.name, "versions": len(name.versions), "fault": name.fault}
    head = name.versions[-1]
    return {
        "name": name.name,
        "versions": len(name.versions),
        "manifest": head.manifest,
        "rows": name.manifest.rows,
        "columns": [
            {
                "column": column.name,
                "encoder": label(column.spec),
                "fingerprint": column.fingerprint.hex(),
                "dim": column.dim,
            }
            for column in name.manifest.columns
        ],
        "bytes": name.nbytes,
        "created": head.created,
    }


def _text(summary: dict[str, Any]) -> str:
    if not summary["names"]:
        return f"{summary['store']} holds no data set yet. Begin with: cachestore build --help"
    head = ("name", "versions", "rows", "bytes", "manifest", "created", "column: encoder")
    rows = []
    for entry in summary["names"]:
        if "fault" in entry:
            rows.append((entry["name"], entry["versions"], "", "", "", "", f"damaged: {entry['fault']}"))
            continue
        encoders = [
            f"{column['column']}: {column['encoder']} ({column['fingerprint'][:8]})" for column in entry["columns"]
        ]
        cells = (entry["name"], entry["versions"], f"{entry['rows']:,}", output.size(entry["bytes"]))
        rows.append((*cells, entry["manifest"][:12], entry["created"][:19], encoders[0]))
        rows += [("",) * 6 + (encoder,) for encoder in encoders[1:]]
    return output.table(head, rows, right=("versions", "rows", "bytes"))
