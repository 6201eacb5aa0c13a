"""`cachestore schema`: the JSON Schema of a config, for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options, output


def command(
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there; otherwise on stdout.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Print the JSON Schema of a config, by which an editor completes and checks one.

    It has the forms of today, short ones included (encoder: minilm). Ludwig's older forms are read, but not in it.

    \b
    Example:
        cachestore schema -o schema.json
        # and as the first line of a config, for editors with the YAML language server:
        # yaml-language-server: $schema=schema.json

    \b
    Exit codes:
        0    done
        2    FILE cannot be written
    """
    import json

    from cachestore import outside
    from trainer.json_schema import config_schema

    schema = config_schema()
    text = json.dumps(schema, indent=1, ensure_ascii=False)
    out = output.Output(as_json, quiet)
    if output_file is None:
        out.result(schema, text)
        return
    outside.write(output_file, f"{text}\n".encode())
    out.result({"output": str(output_file)}, f"schema written to {output_file}")
