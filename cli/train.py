"""`cachestore train`: train a head on stored vectors and the other columns of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import cachestore
from cli import options, output


def command(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="CSV, TSV, Parquet, JSON Lines, Arrow or Feather file.")],
    config: options.ConfigPath,
    validation: Annotated[
        Path | None, typer.Option("--validation", metavar="FILE", help="Validation rows; DATA is then used whole.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", metavar="FILE", help="Test rows; DATA is then used whole.")
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="The run's directory; otherwise a new one in runs/."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change one config value, as trainer.epochs=3; repeat for more."
        ),
    ] = None,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Train the config's outputs on DATA.

    Rows whose vectors the store lacks are built first. Without --validation and --test, and without a split in the
    config, rows are split at random into 70 % for training, 10 % for validation and 20 % for testing.

    \b
    Examples:
        cachestore train reviews.csv -c config.yaml
        cachestore train train.csv -c config.yaml --test test.csv --set trainer.epochs=20

    \b
    Exit codes:
        0    done
        2    wrong usage, config or data
        3    the store is missing, locked, full or of another format
        4    damage found in the store
        5    done, but some rows could not be encoded and were left out
    """
    from trainer.run import train

    out = output.Output(as_json, quiet)
    with cachestore.open_store(store) as opened, out.progress() as progress:
        trained = train(
            opened,
            data,
            config,
            overrides=overrides or [],
            validation=validation,
            test=test,
            output=output_dir,
            progress=progress,
            say=out.say,
        )
    out.result(trained.summary, text(trained.summary))
    if output.skipped(trained.skipped_cells, trained.skipped, data):
        raise typer.Exit(output.SKIPPED_ROWS)


def text(summary: Mapping[str, Any]) -> str:
    """A finished run: where it is, what was encoded, and the metrics by split and output feature."""
    seconds = summary["seconds"]
    phases = ", ".join(f"{phase} {output.duration(spent)}" for phase, spent in seconds.items())
    return "\n".join(
        (
            output.metrics(summary["metrics"]),
            "",
            f"{summary['epochs']} epochs; {summary['encoded']:,} texts encoded, {summary['hits']:,} reused",
            f"seconds: {phases}",
            f"run: {summary['run']}",
        )
    )
