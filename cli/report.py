"""`cachestore report`: the page of a run, its plots, and its metrics for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options, output


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, as train made it.")],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="DATA", help="The file of its test rows, where it is not where it was in training."),
    ] = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="Write the figures as PNG into RUN/plots too (needs the extra plots).")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the metrics for TensorBoard into RUN/tensorboard too.")
    ] = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the report of a run again: RUN/report.html.

    One file that needs nothing else: learning curves, confusion matrix, ROC, calibration, residuals, the worst mistakes
    with what their rows hold, the config, and what the run was trained on. Train writes it too, without the rows of
    files of more than 64 MiB.

    \b
    Examples:
        cachestore report runs/reviews
        cachestore report runs/reviews moved/test.csv --plots

    \b
    Exit codes:
        0    done
        2    wrong usage, or RUN is not a finished run
        4    damage found in the run
    """
    from trainer import report

    if plots:
        report.require_plots()
    page = report.write(run, data)
    drawn = report.write_plots(run) if plots else []
    events = report.write_tensorboard(run) if tensorboard else None
    summary = {
        "report": str(page),
        "plots": [str(path) for path in drawn],
        "tensorboard": None if events is None else str(events),
    }
    lines = [f"report: {page}"]
    if drawn:
        lines.append(f"plots: {output.count(len(drawn), 'file')} in {drawn[0].parent}")
    if events is not None:
        lines.append(f"tensorboard --logdir {events}")
    output.Output(as_json, quiet).result(summary, "\n".join(lines))
