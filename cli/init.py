"""`cachestore init`: a first config for data, by looking at it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cachestore.errors import UsageError
from cli import options, output


def command(
    data: options.Data,
    targets: Annotated[
        list[str] | None, typer.Option("--target", metavar="COLUMN", help="A column to predict; repeat for more.")
    ] = None,
    encoders: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder",
            metavar="TYPE",
            help="The encoder of texts or pictures, as a type or as '{type: hashing, dim: 256}'; repeat for both.",
        ),
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there; otherwise on stdout.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a first config for DATA: look at its columns, and say in comments what was seen.

    Types, missing cells, classes and the length of texts are told from the first 50,000 rows. The config trains as it stands.
    A FILE that is there already is not replaced.

    \b
    Examples:
        cachestore init reviews.csv --target rating -o config.yaml
        cachestore init photos --target label --encoder dinov2

    \b
    Exit codes:
        0    done
        2    wrong usage or data, or a target that cannot be predicted
    """
    from cachestore import outside
    from cachestore.dataset import open_dataset
    from cachestore.encoders import image_settings
    from cachestore.encoders.spec import parse_settings
    from trainer.checkpoint import plain
    from trainer.initial import first_config

    if output_file is not None and output_file.exists():
        raise UsageError(f"{output_file} is there already. Remove it, or name another file with --output.")
    chosen: dict[str, Any] = {}
    for text in encoders or []:
        value = options.encoder(text)
        parsed = parse_settings(value)
        chosen["image_encoder" if isinstance(parsed, image_settings.ImageSettings) else "text_encoder"] = value
    config, columns = first_config(open_dataset(data), targets or [], **chosen)
    out = output.Output(as_json, quiet)
    found: dict[str, Any] = {
        "columns": {
            column.name: plain(
                {"type": column.kind, "why": column.why, "missing": column.missing, "values": column.distinct}
            )
            for column in columns
        }
    }
    if output_file is None:
        out.result({**found, "config": config}, config.rstrip("\n"))
        return
    outside.write(output_file, config.encode())
    used = sum(column.kind is not None for column in columns)
    out.result(
        {**found, "output": str(output_file)},
        f"config of {used} of {output.count(len(columns), 'column')} written to {output_file}",
    )
