"""`cachestore evaluate`: the metrics of a run on a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import cachestore
from cli import options, output


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, as train made it.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A file with the run's input and output columns.")],
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a trained run on the rows of DATA.

    Vectors that the store lacks are encoded and kept.

    \b
    Example:
        cachestore evaluate runs/reviews test.csv

    \b
    Exit codes:
        0    done
        2    wrong usage or data, or RUN is not a run
        3    the store is missing, locked, full or of another format
        4    damage found in the store or in the run
        5    done, but some rows could not be encoded and were left out
    """
    from trainer.run import evaluate

    out = output.Output(as_json, quiet)
    with cachestore.open_store(store) as opened, out.progress() as progress:
        evaluated = evaluate(opened, run, data, progress=progress, say=out.say)
    summary = evaluated.summary
    out.result(summary, f"{summary['rows']:,} rows\n{output.metrics({'value': summary['metrics']})}")
    if output.skipped(evaluated.skipped_cells, evaluated.skipped, data):
        raise typer.Exit(output.SKIPPED_ROWS)
