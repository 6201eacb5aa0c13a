"""The options that several commands have, and the store that --store names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import cachestore
from cachestore.errors import StoreNotFound, StoreNotWritable
from cli.output import Output

StorePath = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="The store; otherwise $CACHESTORE_STORE, else ~/.cache/cachestore."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk and no progress on stderr; errors still show.")]
ConfigPath = Annotated[Path, typer.Option("--config", "-c", metavar="YAML", help="The config file.")]


def open_store(path: Path | None, out: Output) -> cachestore.Store:
    """The store at ``path``, made if there is none. One that this user may only read is opened so, and serves what it holds."""
    try:
        return cachestore.open_store(path)
    except StoreNotWritable as error:
        try:
            opened = cachestore.open_store(path, mode="r")
        except StoreNotFound:
            raise error from None
    out.say(f"The store at {opened.root} is read-only: nothing new can be encoded, and no name recorded.")
    return opened
