"""`cachestore tag`: freeze a version of a name under a word, list such tags, or delete one. Starts without torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import cachestore
from cachestore import references
from cachestore.errors import UsageError
from cachestore.store import readable_root
from cli import options, output


def command(
    version: Annotated[
        str | None,
        typer.Argument(metavar="NAME[@VERSION]", help="What to tag: the newest version, or one by its number."),
    ] = None,
    tag: Annotated[str | None, typer.Argument(metavar="TAG", help="Up to 40 letters, digits, '.', '_', '-'.")] = None,
    delete: Annotated[
        str | None, typer.Option("--delete", metavar="NAME@TAG", help="Delete that tag; the version stays.")
    ] = None,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Freeze a version of a name under a tag: NAME@TAG then leads to it, and gc keeps it.

    A tag does not move: to give it to another version, delete it first. Without arguments, list the tags of the store.

    \b
    Examples:
        cachestore tag reviews v1
        cachestore tag reviews@3 baseline
        cachestore tag --delete reviews@baseline

    \b
    Exit codes:
        0    done
        2    wrong usage, or the tag is another version's
        3    there is no store at that place or no such version in it, or it cannot be written
        4    damage found in the store
    """
    out = output.Output(as_json, quiet)
    if version is None and delete is None:
        _list(store, out)
        return
    if delete is not None and version is not None:
        raise UsageError("Either tag a version or --delete a tag, not both at once.")
    readable_root(store)  # to open one for writing makes it, and there is nothing to tag in a new one
    if delete is not None:
        name, _, old = delete.partition("@")
        with cachestore.open_store(store) as opened:
            references.delete_tag(opened.root, name, old)
        out.result({"deleted": delete}, f"deleted {delete}; the version stays")
        return
    assert version is not None
    if tag is None:
        raise UsageError(f"Say which tag to give to {version}, as in: cachestore tag {version} v1")
    name, at, number = version.partition("@")
    if at and not number.isdecimal():
        raise UsageError(f"{version!r} is not NAME or NAME@VERSION. See the versions: cachestore log {name}")
    with cachestore.open_store(store) as opened:
        made = opened.tag(name, tag, int(number) if at else None)
    out.result(
        {"tag": asdict(made)}, f"{made.name}@{made.tag} is version {made.version}, manifest {made.manifest[:12]}"
    )


def _list(store: Path | None, out: output.Output) -> None:
    root = readable_root(store)
    found: list[dict[str, Any]] = [
        {**asdict(tag), "manifest": references.follow(root, tag.manifest)} for tag in references.tags(root)
    ]
    rows = [(f"{tag['name']}@{tag['tag']}", tag["version"], tag["manifest"][:12], tag["created"][:19]) for tag in found]
    text = output.table(("tag", "version", "manifest", "created"), rows, right=("version",))
    out.result(
        {"store": str(root), "tags": found},
        text if found else f"{root} holds no tags. Make one with: cachestore tag NAME TAG",
    )
