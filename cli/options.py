"""The options that several commands have, and the store that --store names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import cachestore
from cachestore.errors import StoreNotFound, StoreNotWritable, UsageError
from cli.output import Output


def _store_path(text: str) -> Path:
    if not text:  # an unset variable of a script; as a path it would be the working directory
        raise UsageError("--store is empty. Name a directory, or leave the option out.")
    return Path(text)


StorePath = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="DIR",
        parser=_store_path,
        help="The store; otherwise $CACHESTORE_STORE, else ~/.cache/cachestore.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk and no progress on stderr; errors still show.")]
ConfigPath = Annotated[Path, typer.Option("--config", "-c", metavar="YAML", help="The config file.")]

# what train and sweep take
ValidationFile = Annotated[
    Path | None, typer.Option("--validation", metavar="FILE", help="Validation rows; DATA is then used whole.")
]
TestFile = Annotated[Path | None, typer.Option("--test", metavar="FILE", help="Test rows; DATA is then used whole.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change one config value, as trainer.epochs=3; repeat for more."),
]

# what build takes, and explain of a build
Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="CSV, TSV, Parquet, JSON Lines, Arrow or Feather file, or a folder of pictures."
    ),
]
TextConfig = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="YAML", help="Take columns and encoders from a config's text and image features."
    ),
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", metavar="NAME", help="A column to embed; repeat for more.")
]
Encoders = Annotated[
    list[str] | None,
    typer.Option("--encoder", metavar="TYPE", help="Its encoder, as a type or as '{type: hashing, dim: 256}'."),
]


def encoder(text: str) -> Any:
    """An encoder as written on the command line: a bare type, or a YAML (or JSON) mapping of its settings."""
    if not text.lstrip().startswith("{"):
        return text
    from cachestore.yaml_source import parse

    return parse(text, f"--encoder {text}")


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
