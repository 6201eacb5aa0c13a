"""`cachestore verify`: does the store hold what it promises? Starts without torch, unless rows are to be encoded again."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachestore.errors import DamageError, UsageError
from cli import options, output

if TYPE_CHECKING:
    from cachestore.verify import Report

_SHOWN = 50


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Check only what NAME, NAME@VERSION or NAME@TAG leads to."),
    ] = None,
    read_data: Annotated[bool, typer.Option("--read-data", help="Read every byte of the vectors as well.")] = False,
    sample: Annotated[
        str | None, typer.Option("--sample", metavar="PERCENT", help="Read a random part of them, such as 5%.")
    ] = None,
    reencode: Annotated[
        int, typer.Option("--reencode", metavar="N", min=0, help="Encode N random rows again, and compare.")
    ] = 0,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="YAML", help="Take encoders for --reencode from a config's text features."
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            "--encoder", metavar="TYPE", help="An encoder for --reencode, written as for build; repeat for more."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Draw the sample that an earlier check drew.")
    ] = None,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Check the store.

    Always: its logs, tags, pins, manifests, chunks, index and the form of its shards, and that a vector is there
    for every row. With --read-data or --sample also the bytes: the digest of every shard, the check of every
    vector, and that it is finite. Changes nothing, and may run while others build.

    --reencode takes the texts from the files that were built, where these have not changed, and the packaged encoders
    by itself; others are given by -c or --encoder.

    \b
    Examples:
        cachestore verify --read-data
        cachestore verify reviews@2 --sample 5% --reencode 100

    \b
    Exit codes:
        0    no damage; notices are of things that harm nothing
        2    wrong usage
        3    the store or a name is missing, or of another format
        4    damage found; `cachestore repair` mends what can be
    """
    from cachestore.verify import verify

    out = output.Output(as_json, quiet)
    part = _part(sample)
    if read_data and sample:
        raise UsageError("Give --read-data, which reads everything, or --sample, not both.")
    if seed is not None and not (sample or reencode):
        raise UsageError("--seed draws the same sample again. Say of what: --sample 5% or --reencode 100.")
    encoders = _encoders(config, encoder or [], reencode)
    with out.bar() as bar:
        report = verify(
            store,
            names or [],
            read_data=read_data,
            sample=part,
            reencode=reencode,
            encoders=encoders,
            seed=seed,
            progress=partial(bar.bytes, "read") if bar else None,
        )
    out.result(summary(report), text(report))
    if report.damage:
        raise typer.Exit(DamageError.exit_code)


def summary(report: Report) -> dict[str, Any]:
    """The JSON object of a check."""
    return {
        "store": str(report.root),
        "damage": len(report.damage),
        "notices": len(report.notices),
        "findings": [finding.summary() for finding in report.findings],
        "manifests": report.manifests,
        "chunks": report.chunks,
        "shards": report.shards,
        "vectors": report.cells,
        "rows_read": report.rows_read,
        "bytes_read": report.bytes_read,
        "reencoded": report.reencoded.summary() if report.reencoded else None,
        "seed": report.seed,
        "seconds": round(report.seconds, 3),
    }


def text(report: Report) -> str:
    """A check as lines: damage first, then notices, then what was looked at."""
    lines = [str(finding) for finding in [*report.damage, *report.notices][:_SHOWN]]
    if len(report.findings) > _SHOWN:
        lines.append(f"… and {len(report.findings) - _SHOWN:,} more: see --json")
    lines.append(
        f"{output.count(report.manifests, 'manifest')}, {output.count(report.chunks, 'chunk')}, {output.count(report.shards, 'shard')}, "
        f"{output.count(report.cells, 'vector')} looked for"
    )
    if report.bytes_read:
        lines.append(
            f"{output.size(report.bytes_read)} of vectors read, {output.count(report.rows_read, 'row')} (seed {report.seed})"
        )
    compared = report.reencoded
    if compared and compared.least is not None and compared.mean is not None:
        lines.append(
            f"{output.count(compared.rows, 'row')} encoded again: cosine {compared.mean:.6f} on average, {compared.least:.6f} at least"
        )
    elif compared:
        lines.append("no row could be encoded again")
    found = f"{output.count(len(report.damage), 'damaged thing')} found" if report.damage else "no damage found"
    lines.append(f"{output.duration(report.seconds)}: {found}")
    return "\n".join(lines)


def _part(sample: str | None) -> float:
    """The part, from 0 to 1, that ``5%`` is."""
    if sample is None:
        return 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", sample.strip())
    if not found or not 0 < float(found[1]) <= 100:
        raise UsageError(f"--sample takes a percentage above 0% and up to 100%, such as 5%, not {sample!r}.")
    return float(found[1]) / 100


def _encoders(config: Path | None, encoders: list[str], reencode: int) -> list[Any]:
    """The encoders of a config's text features, and those written on the command line."""
    if (config or encoders) and not reencode:
        raise UsageError("--config and --encoder are for --reencode. Say how many rows: --reencode 100.")
    found: list[Any] = [options.encoder(encoder) for encoder in encoders]
    if config is not None:
        from cli.build import stored_columns
        from trainer.config import load_config

        found += [encoder for asked in stored_columns(load_config(config)).values() for encoder in asked]
    return found
