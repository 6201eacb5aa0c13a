"""The options that every command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StorePath = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="The store; otherwise $CACHESTORE_STORE, else ~/.cache/cachestore."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk and no progress on stderr; errors still show.")]
ConfigPath = Annotated[Path, typer.Option("--config", "-c", metavar="YAML", help="The config file.")]
