"""`cachestore evaluate`: the metrics of a run on a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, output

if TYPE_CHECKING:
    from trainer.record import Evaluation


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
        5    done, but some rows could not be read or encoded and were left out
    """
    from cli.watch import watching
    from trainer import evaluate

    out = output.Output(as_json, quiet)
    with options.open_store(store, out) as opened, watching(out) as progress:
        evaluation = evaluate(run, data, opened, progress=progress)
    found = summary(evaluation)
    out.result(found, "\n".join([output.count(evaluation.rows, "row"), _table(evaluation), *_remarks(evaluation)]))
    if output.skipped(evaluation.skipped_cells, evaluation.skipped, data):
        raise typer.Exit(output.SKIPPED_ROWS)


def _table(evaluation: Evaluation) -> str:
    """A line per output and metric, with its 95 % interval where it has one."""
    lines = []
    for name, metrics in evaluation.metrics.items():
        known = evaluation.final.outputs.get(name) if evaluation.final is not None else None
        for metric, value in metrics.items():
            estimate = None if known is None else known.metrics.get(metric)
            interval = ""
            if estimate is not None and not math.isnan(estimate.low):
                interval = f"{output.number(estimate.low)} … {output.number(estimate.high)}"
            lines.append((name, metric, output.number(value), interval))
    return output.table(("output", "metric", "value", "95 % interval"), lines, right=("value",))


def _remarks(evaluation: Evaluation) -> list[str]:
    outputs = {} if evaluation.final is None else evaluation.final.outputs
    return [
        f"percentage errors of {name} leave out {output.count(result.zero_targets, 'row')} whose value is 0"
        for name, result in outputs.items()
        if result.zero_targets
    ]


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """The JSON object of an evaluation."""
    from trainer.checkpoint import plain

    found: dict[str, Any] = plain(
        {
            "rows": evaluation.rows,
            "metrics": evaluation.metrics,
            "final": None if evaluation.final is None else evaluation.final.to_json(),
            "dropped": evaluation.dropped,
            "skipped": evaluation.skipped,
            "encoded": evaluation.encoded,
            "hits": evaluation.hits,
            "seconds": evaluation.seconds,
        }
    )
    return found
