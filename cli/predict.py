"""`cachestore predict`: the predictions of a run for a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from cachestore.errors import UsageError
from cli import options, output

if TYPE_CHECKING:
    from trainer.record import Predictions


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, as train made it.")],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A file with the run's input columns.")],
    output_file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A .csv or .parquet file; otherwise CSV on stdout."),
    ] = None,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Predict the outputs of a trained run for the rows of DATA.

    One line per row of DATA, in its order: for a category or binary output the class, its probability and that of each
    class, for a number its value; empty where a row cannot be used. Vectors that the store lacks are encoded and kept. FILE is
    written whole or not at all.

    \b
    Example:
        cachestore predict runs/reviews new.csv -o predictions.parquet

    \b
    Exit codes:
        0    done
        2    wrong usage or data, or RUN is not a run
        3    the store is missing, locked, full or of another format
        4    damage found in the store or in the run
        5    done, but some rows could not be read or encoded and have no prediction
    """
    from cli.watch import watching
    from trainer import predict

    if output_file is not None and output_file.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError(
            f"{output_file}: predictions are written as .csv or .parquet. Give the file one of these names."
        )
    if output_file is not None and output_file.exists() and data.exists() and output_file.samefile(data):
        raise UsageError(f"{output_file} is DATA itself, which the predictions would replace. Name another file.")
    out = output.Output(as_json, quiet)
    with options.open_store(store, out) as opened, watching(out) as progress:
        predictions = predict(run, data, opened, progress=progress)
    if output_file is not None:
        _write(predictions.columns, output_file)
    out.result(_summary(predictions, output_file), _text(predictions, output_file))
    if output.skipped(predictions.skipped_cells, predictions.skipped, data):
        raise typer.Exit(output.SKIPPED_ROWS)


def _summary(predictions: Predictions, file: Path | None) -> dict[str, Any]:
    from trainer.checkpoint import plain

    found: dict[str, Any] = plain(
        {
            "rows": len(predictions.predicted),
            "output": None if file is None else str(file),
            "dropped": predictions.dropped,
            "skipped": predictions.skipped,
            "encoded": predictions.encoded,
            "hits": predictions.hits,
            "seconds": predictions.seconds,
        }
    )
    if file is None:
        found["predictions"] = plain({name: values.tolist() for name, values in predictions.columns.items()})
    return found


def _text(predictions: Predictions, file: Path | None) -> str:
    if file is None:
        return _csv(predictions.columns).rstrip("\n")
    unused = int((~predictions.predicted).sum())
    return f"{output.count(len(predictions.predicted), 'row')} written to {file}" + (
        f", {unused:,} of them empty" if unused else ""
    )


def _csv(columns: Mapping[str, NDArray[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*map(_cells, columns.values()), strict=True))
    return text.getvalue()


def _cells(values: NDArray[Any]) -> list[str | None]:
    """Texts as they are; numbers with the digits that their type holds, which ``tolist`` would add to; NaN is empty."""
    if values.ndim > 1:  # a vector of each row
        return [None if np.isnan(row).all() else "[" + ", ".join(map(str, row)) + "]" for row in values]
    if values.dtype.kind != "f":
        cells: list[Any] = values.tolist()
        return [json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell for cell in cells]
    return [None if value != value else str(value) for value in values]  # noqa: PLR0124  # NaN is not itself


def _write(columns: Mapping[str, NDArray[Any]], file: Path) -> None:
    from cachestore import outside

    outside.write(file, _csv(columns).encode() if file.suffix.lower() == ".csv" else _parquet(columns))


def _parquet(columns: Mapping[str, NDArray[Any]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    arrays = {
        name: pa.array(values if values.ndim == 1 else list(values), from_pandas=True)  # NaN is null
        for name, values in columns.items()
    }
    written = io.BytesIO()
    parquet.write_table(pa.table(arrays), written)
    return written.getvalue()
