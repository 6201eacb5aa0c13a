"""`cachestore stats`: what the store holds, and what its vectors are like. Starts without torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, output

if TYPE_CHECKING:
    from cachestore.stats import Stats, StoredEncoder

_BUILDS_SHOWN = 5


def command(
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", min=0, help="Vectors of each encoder to look at; 0 for all.")
    ] = 20_000,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Tell what the store holds.

    Vectors, encoders with the names that use them and the age of their shards, bytes by kind, and what the builds that
    last added a version found in the store. Of each encoder's vectors a sample is looked at, always the same one: their
    lengths, how many repeat another one, dimensions with the same value in all, and NaN or infinity.

    \b
    Examples:
        cachestore stats
        cachestore stats --sample 0 --json

    \b
    Exit codes:
        0    done
        2    wrong usage
        3    there is no store at that place, or it cannot be read
        4    damage found in the store
    """
    from cachestore.stats import stats
    from cachestore.store import open_to_read

    with open_to_read(store) as opened:
        found = stats(opened, sample=sample)
    output.Output(as_json, quiet).result(_summary(found), _text(found))


def _summary(found: Stats) -> dict[str, Any]:
    return {
        "store": str(found.root),
        "vectors": found.vectors,
        "shards": found.shards,
        "names": found.names,
        "versions": found.versions,
        "bytes": found.nbytes,
        "disk": dict(found.disk),
        "encoders": [_encoder(encoder) for encoder in found.encoders],
        "builds": [asdict(build) for build in found.builds],
    }


def _encoder(encoder: StoredEncoder) -> dict[str, Any]:
    return {
        "encoder": encoder.label,
        "fingerprint": encoder.fingerprint.hex(),
        "vectors": encoder.vectors,
        "bytes": encoder.nbytes,
        "shards": encoder.shards,
        "names": list(encoder.names),
        "oldest": encoder.oldest,
        "newest": encoder.newest,
        "quality": asdict(encoder.quality) if encoder.quality else None,
    }


def _text(found: Stats) -> str:
    lines = [
        f"{found.root}: {output.count(found.vectors, 'vector')} in {output.count(found.shards, 'shard')}, "
        f"{output.count(found.names, 'name')} with "
        f"{output.count(found.versions, 'version')}, {output.size(found.nbytes)}",
        "  " + ", ".join(f"{kind} {output.size(nbytes)}" for kind, nbytes in found.disk.items()),
    ]
    for encoder in found.encoders:
        lines += ["", *_of_encoder(encoder)]
    if found.builds:
        head = ("build", "created", "rows", "found", "encoded", "repeats", "seconds")
        rows = [
            (
                f"{b.name}@{b.version}",
                b.created[:19],
                f"{b.rows:,}",
                f"{b.hits:,}",
                f"{b.encoded:,}",
                f"{b.repeats:,}",
                b.seconds,
            )
            for b in found.builds[:_BUILDS_SHOWN]
        ]
        lines += ["", output.table(head, rows, right=head[2:])]
    return "\n".join(lines)


def _of_encoder(encoder: StoredEncoder) -> list[str]:
    used = f"used by {', '.join(encoder.names)}" if encoder.names else "used by no name"
    lines = [
        f"{encoder.label} ({encoder.fingerprint.hex()[:8]})",
        f"  {output.count(encoder.vectors, 'vector')}, {output.size(encoder.nbytes)}, {used}",
        f"  stored from {encoder.oldest[:19]} to {encoder.newest[:19]}",
    ]
    quality = encoder.quality
    if quality is not None and quality.rows:
        sampled = f"of {output.count(quality.rows, 'vector')}: " if quality.rows < encoder.vectors else ""
        norms = "no finite vector"
        if quality.norm_min is not None:
            norms = f"norms {quality.norm_min:.4g}, {quality.norm_median:.4g}, {quality.norm_max:.4g} (least, median, greatest)"
        notes = [norms, f"{quality.duplicates:.2%} repeat another one"]
        notes += [f"{quality.zeros:,} all zeros"] if quality.zeros else []
        notes += [f"{output.count(quality.dead, 'dead dimension')}"] if quality.dead else []
        notes += [f"{quality.not_finite:,} with NaN or infinity"] if quality.not_finite else []
        lines.append(f"  {sampled}{', '.join(notes)}")
    return lines
