"""`cachestore predict`: the predictions of a run for a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import cachestore
from cli import options, output


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, as train made it.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A file with the run's input columns.")],
    output_file: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write them, .csv or .parquet.")
    ] = Path("predictions.csv"),
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Predict the outputs of a trained run for the rows of DATA.

    The file has one line per row of DATA, in its order: for a category or binary output the class and the probability
    of each class, for a number its value. Vectors that the store lacks are encoded and kept.

    \b
    Example:
        cachestore predict runs/reviews new.csv -o predictions.parquet

    \b
    Exit codes:
        0    done
        2    wrong usage or data, or RUN is not a run
        3    the store is missing, locked, full or of another format
        4    damage found in the store or in the run
        5    done, but some rows could not be encoded and have no prediction
    """
    from trainer.run import predict

    out = output.Output(as_json, quiet)
    with cachestore.open_store(store) as opened, out.progress() as progress:
        predicted = predict(opened, run, data, output=output_file, progress=progress, say=out.say)
    summary = predicted.summary
    out.result(summary, f"{summary['rows']:,} rows predicted: {output_file}")
    if output.skipped(predicted.skipped_cells, predicted.skipped, data):
        raise typer.Exit(output.SKIPPED_ROWS)
