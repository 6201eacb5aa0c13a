"""`cachestore export`: vectors of the store as a file that needs no store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachestore.errors import UsageError
from cli import options, output

if TYPE_CHECKING:
    from cachestore.export import Export


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name, NAME@VERSION, NAME@TAG, or a manifest's id.")],
    output_file: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="A .parquet, .arrow, .npy or .safetensors file; replaced."),
    ],
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="NAME", help="A column of vectors; repeat for more, else all."),
    ] = None,
    carry: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME", help="A column of the built file to write beside; repeat for more."),
    ] = None,
    timestamp_column: Annotated[
        str | None,
        typer.Option("--timestamp-column", metavar="NAME", help="The column to take event_timestamp from."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="TYPE", help="float32 or float16.")] = "float32",
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the vectors of a data set, in its order, to FILE.

    \b
    .parquet      COLUMN_vector, a list per row, null where a row has no vector;
    .arrow        the same as an Arrow stream. Both have the columns asked for by
                  --with, and event_timestamp: the time of the version, or what
                  --timestamp-column says.
    .npy          one array (rows, dim); zeros where a row has no vector
    .safetensors  a tensor COLUMN (rows, dim), zeros where a row has no vector, and
                  COLUMN.mask (rows,), which is false there

    --with and --timestamp-column read the file that the version was built from; it
    must be as it was then.

    \b
    They load so:
        Hugging Face  load_dataset("parquet", data_files="out.parquet")
                      Dataset.from_file("out.arrow")
        Feast         FileSource(path="out.parquet", timestamp_field="event_timestamp"),
                      exported --with the entity's column

    \b
    Examples:
        cachestore export reviews -o reviews.parquet --with review_id --with stars
        cachestore export reviews@3 --column text -o text.npy --dtype float16

    \b
    Exit codes:
        0    done
        2    wrong usage, or the file that was built from changed
        3    the store or that name is missing, or the store cannot be read
        4    damage found in the store
    """
    out = output.Output(as_json, quiet)
    if dtype not in ("float32", "float16"):
        raise UsageError(f"--dtype is float32 or float16, not {dtype!r}.")
    from cachestore.export import export
    from cachestore.store import open_to_read

    with open_to_read(store) as opened:
        done = export(
            opened,
            name,
            output_file,
            columns=column or [],
            carry=carry or [],
            dtype=dtype,  # type: ignore[arg-type]  # checked above
            timestamp_column=timestamp_column,
        )
    for text, count in done.vectors.items():
        if count < done.rows:
            empty = _EMPTY.get(output_file.suffix.lower(), "they are null there")
            out.say(f"{done.rows - count:,} of {done.rows:,} rows have no vector of {text!r}: {empty}")
    if done.undecodable:
        out.say(f"{done.undecodable:,} cells of the columns beside are not UTF-8: they are null there")
    out.result(_summary(done), _text(done))


_EMPTY = {
    ".npy": "they are zeros there; a .safetensors file tells them apart",
    ".safetensors": "they are zeros there, and false in its mask",
}


def _summary(done: Export) -> dict[str, Any]:
    return {
        "output": str(done.path),
        "manifest": done.manifest,
        "rows": done.rows,
        "vectors": dict(done.vectors),
        "carried": list(done.carried),
        "undecodable": done.undecodable,
        "bytes": done.nbytes,
    }


def _text(done: Export) -> str:
    columns = ", ".join([*done.vectors, *done.carried])
    return f"{done.rows:,} rows ({columns}) written to {done.path}, {output.size(done.nbytes)}"
