"""`cachestore log`: the versions of a name. Starts without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

import cachestore
from cachestore import references
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.manifest import Version
from cli import options, output


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of the store, as `cachestore ls` lists them.")],
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List the versions of NAME, the newest first.

    With what each was built from, how many texts that encoded and how many cells were found in the store, its tags, and
    the runs that were trained on it. A version is collected when `gc` removed it: building the same data again, with
    the same encoders, brings it back.

    \b
    Examples:
        cachestore log reviews
        cachestore log reviews --json

    \b
    Exit codes:
        0    done
        2    wrong usage
        3    there is no store at that place or no such name in it, or it cannot be read
        4    damage found in the store
    """
    with cachestore.open_store(store, mode="r") as opened:
        log = opened.log(name)
        tags = [tag for tag in references.tags(opened.root) if tag.name == name]
        runs: dict[str, list[str]] = {}
        for pin in references.pins(opened.root):
            for identity in pin.manifests:
                runs.setdefault(references.follow(opened.root, identity), []).append(pin.path)
        versions = []
        for line in reversed(log):
            entry = _entry(opened, line, head=line is log[-1])
            entry["tags"] = [tag.tag for tag in tags if tag.version == line.version]
            entry["runs"] = runs.get(entry["manifest"], [])
            versions.append(entry)
        root = opened.root
    summary = {"store": str(root), "name": name, "versions": versions}
    output.Output(as_json, quiet).result(summary, _text(summary))
    if versions[0]["state"] == "lost":
        raise typer.Exit(DamageError.exit_code)


def _entry(store: cachestore.Store, line: Version, *, head: bool) -> dict[str, Any]:
    identity = references.follow(store.root, line.manifest)
    counts, source = _mapping(line.provenance, "counts"), _mapping(line.provenance, "source")
    rows = counts.get("rows")
    state = "there" if identity == line.manifest else "forgotten from"
    try:
        rows = store.manifest(identity).rows
    except ManifestNotFound:
        state = "lost" if head else "collected"
    return {
        "version": line.version,
        "created": line.created,
        "manifest": identity,
        "state": state,
        "rows": rows,
        "encoded": counts.get("encoded"),
        "hits": counts.get("hits"),
        "source": source.get("label"),
        "parent": line.parent,
    }


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _text(summary: Mapping[str, Any]) -> str:
    rows = []
    for entry in summary["versions"]:
        manifest = entry["manifest"][:12] + ("" if entry["state"] == "there" else f" ({entry['state']})")
        counts = ["" if entry[field] is None else f"{entry[field]:,}" for field in ("rows", "encoded", "hits")]
        parent = (entry["parent"] or "")[:12]
        tags = ", ".join(entry["tags"])
        rows.append((entry["version"], entry["created"][:19], *counts, manifest, parent, tags, entry["source"] or ""))
        rows += [("",) * 8 + (f"run: {path}",) for path in entry["runs"]]
    head = ("version", "created", "rows", "encoded", "found", "manifest", "parent", "tags", "source, and runs on it")
    return output.table(head, rows, right=("version", "rows", "encoded", "found"))
