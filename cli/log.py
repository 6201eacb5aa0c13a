"""`cachestore log`: the versions of a name. Starts without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cachestore import manifest as manifests
from cachestore import references
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.manifest import Version
from cachestore.store import readable_root
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
    root = readable_root(store)
    log = manifests.read_log(root, name)
    frozen: dict[int, list[str]] = {}
    others = []
    for tag in (tag for tag in references.tags(root) if tag.name == name):
        if references.frozen(root, tag, log):
            frozen.setdefault(tag.version, []).append(tag.tag)
        else:
            others.append({"tag": tag.tag, "version": tag.version, "manifest": references.follow(root, tag.manifest)})
    runs: dict[str, list[str]] = {}
    for pin in references.pins(root):
        for identity in pin.manifests:
            runs.setdefault(references.follow(root, identity), []).append(pin.path)
    versions = []
    for line in reversed(log):
        entry = _entry(root, line, head=line is log[-1])
        entry["tags"] = frozen.get(line.version, [])
        entry["runs"] = runs.get(entry["manifest"], [])
        versions.append(entry)
    summary = {"store": str(root), "name": name, "versions": versions, "other_tags": others}
    output.Output(as_json, quiet).result(summary, _text(summary))
    if versions[0]["state"] == "lost":
        raise typer.Exit(DamageError.exit_code)


def _entry(root: Path, line: Version, *, head: bool) -> dict[str, Any]:
    identity = references.follow(root, line.manifest)
    counts, source = _mapping(line.provenance, "counts"), _mapping(line.provenance, "source")
    rows = counts.get("rows")
    state = "there" if identity == line.manifest else "forgotten from"
    try:
        rows = manifests.read_manifest(root, identity).rows
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
    lines = [output.table(head, rows, right=("version", "rows", "encoded", "found"))]
    lines += [
        f"{summary['name']}@{tag['tag']} is manifest {tag['manifest'][:12]}, a version {tag['version']} that this log does not have"
        for tag in summary["other_tags"]
    ]
    return "\n".join(lines)
