"""`cachestore ls`: what the store holds. Starts without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cachestore import references
from cachestore.encoders import label
from cachestore.errors import DamageError
from cachestore.forget_journal import interrupted
from cachestore.heads import Name, heads
from cachestore.references import Pin
from cachestore.store import readable_root
from cli import options, output


def command(
    runs: Annotated[
        bool, typer.Option("--runs", help="List the runs that were trained on the store, and on what.")
    ] = False,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List the data sets of the store.

    With their versions, rows and encoders, and the size of their vectors. With --runs, list for every run what it was
    trained on and whether its directory is still there, and for every version the runs on it.

    \b
    Examples:
        cachestore ls --json
        cachestore ls --runs

    \b
    Exit codes:
        0    done
        3    there is no store at that place, or it cannot be read
        4    damage found in the store
    """
    out = output.Output(as_json, quiet)
    root = readable_root(store)
    if line := interrupted(root):
        out.say(line)
    if runs:
        lineage = {"store": str(root), **_lineage(root)}
        out.result(lineage, _lineage_text(lineage))
        return
    names = heads(root)
    summary = {"store": str(root), "names": [_entry(name) for name in names]}
    out.result(summary, _text(summary))
    if any(name.manifest is None for name in names):
        raise typer.Exit(DamageError.exit_code)


def _entry(name: Name) -> dict[str, Any]:
    if name.manifest is None:
        return {"name": name.name, "versions": len(name.versions), "fault": name.fault}
    head = name.versions[-1]
    return {
        "name": name.name,
        "versions": len(name.versions),
        "manifest": name.manifest.id,
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


def _lineage(root: Path) -> dict[str, Any]:
    """Runs with the versions that they were trained on, and versions with the runs on them."""
    versions: dict[str, list[str]] = {}
    for kept in references.roots(root):
        if kept.kind == "name":
            versions.setdefault(kept.manifest, []).append(kept.label)
    runs = [_run(root, pin, versions) for pin in references.pins(root)]
    labels = [label for listed in versions.values() for label in listed]
    by_version = {label: [run["path"] for run in runs if label in run["versions"]] for label in labels}
    names = [
        {
            "name": name,
            "runs": {label: paths for label, paths in by_version.items() if label.rpartition("@")[0] == name and paths},
        }
        for name in sorted({label.rpartition("@")[0] for label in labels})
    ]
    return {"runs": runs, "names": names}


def _run(root: Path, pin: Pin, versions: Mapping[str, list[str]]) -> dict[str, Any]:
    trained_on = [references.follow(root, identity) for identity in pin.manifests]
    return {
        "run": pin.run,
        "path": pin.path,
        "created": pin.created,
        "there": not pin.missing(),
        "manifests": trained_on,
        "versions": [label for identity in trained_on for label in versions.get(identity, ())],
    }


def _lineage_text(lineage: Mapping[str, Any]) -> str:
    if not lineage["runs"]:
        return f"No run has been trained on {lineage['store']}. Begin with: cachestore train --help"
    rows = []
    for run in lineage["runs"]:
        trained_on = ", ".join(run["versions"]) or ", ".join(identity[:12] for identity in run["manifests"])
        rows.append((run["path"], run["created"][:19], trained_on, "there" if run["there"] else "gone"))
    lines = [output.table(("run", "created", "trained on", "directory"), rows), ""]
    by_version = [(label, path) for name in lineage["names"] for label, paths in name["runs"].items() for path in paths]
    if by_version:
        lines.append(output.table(("version", "run on it"), by_version))
    return "\n".join(lines).rstrip()
