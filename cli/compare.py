"""`cachestore compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cli import options, output

if TYPE_CHECKING:
    from trainer.report.comparison import Comparison


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Directories of runs, as train made them.")],
    split: Annotated[
        Literal["test", "validation", "train"] | None,
        typer.Option(
            "--split", help="Whose metrics; otherwise test where all runs have it, else validation, else train."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with the learning curves as well.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the metrics of runs side by side, and in which settings they differ.

    Differences are from the first run; * is the best value of a line.

    \b
    Examples:
        cachestore compare runs/reviews runs/reviews_1
        cachestore compare runs/* --html compare.html

    \b
    Exit codes:
        0    done
        2    wrong usage, or one of them is not a finished run
        4    damage found in a run
    """
    from cachestore import outside
    from trainer.checkpoint import plain
    from trainer.report import comparison

    found = comparison.compare(runs, split)
    text = _text(found)
    if html is not None:
        outside.write(html, comparison.document(found).encode())
        text += f"\n\npage: {html}"
    output.Output(as_json, quiet).result(plain(found.to_json() | {"html": None if html is None else str(html)}), text)


def _text(found: Comparison) -> str:
    rows = []
    for line in found.lines:
        cells = [line.output, line.metric]
        for place, value in enumerate(line.values):
            difference = line.against_first(place)
            mark = "*" if place in line.best and len(line.best) < len(line.values) else " "
            told = f" ({difference:+.4f})" if place and difference is not None else ""
            cells.append("" if value is None else f"{output.number(value)}{told}{mark}")
        rows.append(cells)
    parts = [
        f"metrics of the {found.split} rows" + _rows(found),
        output.table(("output", "metric", *found.names), rows, right=found.names),
    ]
    if found.config:
        lines = [
            (path, *("" if value is None else str(value) for value in values)) for path, values in found.config.items()
        ]
        parts += ["", output.table(("setting", *found.names), lines)]
    else:
        parts += ["", "their settings are the same"]
    return "\n".join(parts)


def _rows(found: Comparison) -> str:
    return {True: ", the same in all runs", False: ", which are not the same in all runs", None: ""}[found.same_data]
