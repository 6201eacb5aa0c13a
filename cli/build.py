"""`cachestore build`: make sure that the vectors of a file's rows are in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import cachestore
from cachestore.errors import StoreNotFound, UsageError
from cachestore.forget_journal import interrupted
from cli import options, output

if TYPE_CHECKING:
    from cachestore.built import Build, Progress
    from cachestore.plan import Plan
    from trainer.schema import Config


def command(
    data: options.Data,
    config: options.TextConfig = None,
    column: options.Columns = None,
    encoder: options.Encoders = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="The name to keep it under; otherwise the file's stem.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done; write nothing.")] = False,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Encode what the store lacks of DATA's text and image columns.

    Each distinct text or picture is encoded once; later builds, other files and training reuse it. A build that was
    interrupted continues where it stopped.

    \b
    Examples:
        cachestore build reviews.csv --column text --encoder minilm
        cachestore build reviews.csv -c config.yaml --dry-run
        cachestore build photos/ --column image --encoder '{type: resnet, model_variant: 18}'

    \b
    Exit codes:
        0    done
        2    wrong usage, config or data
        3    the store is missing, locked, full or of another format
        4    damage found in the store
        5    done, but some cells could not be encoded and were skipped
    """
    out = output.Output(as_json, quiet)
    columns = columns_of(config, column or [], encoder or [])
    if dry_run:
        plan = _plan(store, data, columns)
        out.result(_plan_summary(plan), _plan_text(plan))
        return
    from cachestore.build import run

    with options.open_store(store, out) as opened, out.bar() as bar:
        waited: set[str] = set()
        if line := interrupted(opened.root):
            out.say(line)

        def show(progress: Progress) -> None:
            output.say_if_waiting(out, waited, data.name, progress)
            if bar:
                bar.build(data.name, progress)

        built = run(opened, data, columns, name=name, named=not opened.readonly, progress=show)
    out.result(summary(built), text(built))
    if output.skipped(built.skipped_cells, built.counts.skipped, data):
        raise typer.Exit(output.SKIPPED_ROWS)


def summary(built: Build) -> dict[str, Any]:
    """The JSON object of a finished build."""
    counts = built.counts
    return {
        "name": built.name,
        "manifest": built.manifest.id,
        "rows": counts.rows,
        "encoded": counts.encoded,
        "hits": counts.hits,
        "duplicates": counts.duplicates,
        "missing": counts.missing,
        "skipped": counts.skipped,
        "bytes_written": built.bytes_written,
        "seconds": round(built.seconds, 3),
    }


def text(built: Build) -> str:
    """A finished build in two or three lines."""
    counts = built.counts
    kinds = {column.spec.get("kind") == "image" for column in built.manifest.columns}
    unit = "cell" if len(kinds) > 1 else "picture" if True in kinds else "text"
    lines = [
        f"{built.name or 'not named'}: {output.count(counts.rows, 'row')}, manifest {built.manifest.id[:12]}",
        f"{output.count(counts.encoded, unit)} encoded, {output.count(counts.hits, 'cell')} found in the store, "
        f"{output.count(counts.duplicates, 'repeat')}",
    ]
    if counts.missing or counts.skipped:
        lines.append(f"{output.count(counts.missing, 'cell')} missing, {counts.skipped:,} skipped")
    lines.append(f"{output.duration(built.seconds)}, {output.size(built.bytes_written)} written")
    return "\n".join(lines)


def stored_columns(config: Config) -> dict[str, Any]:
    """The columns that a config's text and image features read, with their encoders: what a build of its data needs.

    Encoders that run in training have nothing in the store.
    """
    columns: dict[str, Any] = {}
    for feature in config.cached:
        columns.setdefault(feature.column, []).append(feature.encoder)
    if not columns and config.live:
        raise UsageError(
            "All encoders of the config run in training, so there is nothing to build. Train with it at once."
        )
    if not columns:
        raise UsageError("The config has no text or image feature, so there is nothing to build.")
    return columns


def columns_of(config: Path | None, columns: Sequence[str], encoders: Sequence[str]) -> Mapping[str, Any]:
    """The columns to embed with their encoders, as the options --config, --column and --encoder say them."""
    if config is not None:
        if columns or encoders:
            raise UsageError("Give the columns either by --config or by --column and --encoder, not both.")
        from trainer.config import load_config

        return stored_columns(load_config(config))
    if not columns:
        raise UsageError("Say what to encode: -c config.yaml, or --column text --encoder minilm.")
    if len(columns) != len(encoders):
        raise UsageError(
            f"Each --column needs one --encoder: there are {len(columns)} columns and {len(encoders)} encoders."
        )
    found: dict[str, Any] = {}
    for column, encoder in zip(columns, encoders, strict=True):
        found.setdefault(column, []).append(options.encoder(encoder))
    return found


def _plan(store: Path | None, data: Path, columns: Mapping[str, Any]) -> Plan:
    from cachestore.plan import plan

    try:
        opened = cachestore.open_store(store, mode="r")
    except StoreNotFound:
        return plan(None, data, columns)
    with opened:
        return plan(opened, data, columns)


def _plan_summary(plan: Plan) -> dict[str, Any]:
    counts = plan.counts
    return {
        "dry_run": True,
        "rows": counts.rows,
        "hits": counts.hits,
        "to_encode": counts.encoded,
        "duplicates": counts.duplicates,
        "missing": counts.missing,
        "skipped": counts.skipped,
        "seconds_estimate": None if plan.seconds is None else round(plan.seconds, 3),
        "bytes": plan.nbytes,
    }


def _plan_text(plan: Plan) -> str:
    counts = plan.counts
    lines = [
        f"{output.count(counts.rows, 'row')}: {output.count(counts.encoded, 'vector')} to encode, "
        f"{output.count(counts.hits, 'cell')} found in the store, {output.count(counts.duplicates, 'repeat')}"
    ]
    if counts.missing or counts.skipped:
        lines.append(f"{output.count(counts.missing, 'cell')} missing, {counts.skipped:,} to be skipped")
    if plan.seconds is not None:
        lines.append(f"about {output.duration(plan.seconds)} and {output.size(plan.nbytes)}")
    return "\n".join([*lines, "nothing was written"])
