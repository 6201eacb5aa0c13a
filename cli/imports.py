"""`cachestore import`: vectors made elsewhere become rows of the store."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import cachestore
from cachestore.errors import UsageError
from cli import build, options, output


def command(
    vectors: Annotated[
        Path,
        typer.Argument(
            metavar="VECTORS", help="A Parquet, Arrow or Feather file of texts and vectors, or a .npy array."
        ),
    ],
    spec: Annotated[
        Path, typer.Option("--spec", metavar="YAML", help="What tells these vectors from others; dim is required.")
    ],
    text_column: Annotated[
        str | None,
        typer.Option("--text-column", metavar="NAME", help="The column of texts in VECTORS; otherwise text."),
    ] = None,
    vector_column: Annotated[
        str | None, typer.Option("--vector-column", metavar="NAME", help="The column of vectors; otherwise vector.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="For a .npy array: the file of the texts of its rows.")
    ] = None,
    column: Annotated[
        str | None, typer.Option("--column", metavar="NAME", help="The column of texts in FILE; otherwise text.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The name to keep it under; otherwise the file's stem.")
    ] = None,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Store vectors that were made elsewhere, by an API model for instance.

    Each becomes the vector of its text under the spec in YAML. All rows are checked
    before the first is stored: that every text has one vector of dim finite numbers,
    not all of them zero, of which dtype keeps 99 % or more of the length, and no other
    vector in the store. A missing text is a row without a vector; one without a letter
    or digit may have a vector of zeros. float16 rounds numbers from 0.00006 to 65504 by
    0.05 % at most; smaller ones lose more, and larger ones have no place in it.

    \b
    The spec is a mapping of whatever tells these vectors from others:
        model: text-embedding-3-small
        dim: 1536
        dtype: float16        # what is stored; float32 keeps every digit
        prompt: "search_document: "
    Other words in it mean other vectors. A config uses them by
        encoder: {type: imported, spec: spec.yaml}
    and its texts must all have been imported.

    \b
    Examples:
        cachestore import vectors.parquet --spec spec.yaml --name reviews
        cachestore import vectors.npy --spec spec.yaml --data texts.csv --column text

    \b
    Exit codes:
        0    done
        2    wrong usage, spec or data; nothing was imported
        3    the store is locked, full or of another format
        4    damage found in the store
        5    done, but some texts are not UTF-8 and were skipped
    """
    out = output.Output(as_json, quiet)
    is_array = vectors.suffix.lower() == ".npy"
    if is_array and (text_column or vector_column):
        raise UsageError(
            "--text-column and --vector-column are of a table; for a .npy array write --data FILE --column NAME."
        )
    if not is_array and column:
        raise UsageError(
            "--column is of the file that --data names, for a .npy array; for a table write --text-column."
        )
    from cachestore.imports import import_vectors

    with cachestore.open_store(store) as opened, out.bar() as bar:
        done = import_vectors(
            opened,
            vectors,
            spec,
            data=data,
            text_column=column or text_column or "text",
            vector_column=vector_column or "vector",
            name=name,
            progress=partial(bar.build, vectors.name) if bar else None,
            tell=out.say,
        )
    summary = build.summary(done)
    summary["imported"] = summary.pop("encoded")
    out.result(summary, build.text(done).replace("texts encoded", "vectors imported"))
    if output.skipped(done.skipped_cells, done.counts.skipped, data or vectors):
        raise typer.Exit(output.SKIPPED_ROWS)
