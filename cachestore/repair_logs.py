"""Mending the log of a name: lines that cannot be read are dropped, and what one line says twice with its neighbour mends the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cachestore import files, references
from cachestore import manifest as manifests
from cachestore.errors import DamageError
from cachestore.manifest import Version
from cachestore.repair_records import Lost, keep
from cachestore.verify_names import readable_log

_LED_TO = re.compile(rb'"manifest":\s*"([0-9a-f]{64})"')


@dataclass(frozen=True)
class LogMend:
    """A log as it will be. Without any version the name is gone."""

    name: str
    versions: tuple[Version, ...]
    dropped: int
    mended: int
    lost: tuple[Lost, ...] = ()
    """the versions whose lines were dropped, or the name"""


def plan_log(root: Path, name: str) -> LogMend:
    """What can be kept of the log of a name."""
    try:
        log = readable_log(root, name)
    except (DamageError, FileNotFoundError):
        return LogMend(name, (), 1, 0, (_lost_name(name, 0),))
    versions = _mended(root, log.versions)
    changed = {at for at, version in enumerate(versions) if version != log.versions[at]}
    lost = tuple(_lost_lines(root, name, versions)) if versions else (_lost_name(name, log.broken),)
    return LogMend(name, tuple(versions), log.broken, len(changed | log.doubted), lost)


def carry_out(root: Path, mend: LogMend) -> None:
    """Keep the log as it is in quarantine, and replace it. The caller holds ``builders`` alone, and ``names``."""
    path = root / "names" / f"{mend.name}.jsonl"
    if mend.versions:
        keep(root, path)
        manifests.write_log(root, mend.name, mend.versions)
    else:
        files.to_quarantine(root, path)


def _mended(root: Path, lines: Sequence[Version]) -> list[Version]:
    """Each line names its manifest and that of the line before: where these differ, the manifest that is there counts."""
    found: list[Version] = []
    for line in lines:
        before = found[-1] if found else None
        number, parent = (before.version, before.manifest) if before else (0, None)
        kept = line
        if line.parent == parent:
            kept = replace(line, version=number + 1)
        elif line.version == number + 1:
            if before and line.parent and not _there(root, before.manifest) and _there(root, line.parent):
                found[-1] = replace(before, manifest=line.parent)
            else:
                kept = replace(line, parent=parent)
        elif line.version <= number:  # neither fits: it comes after the line before it, as in the file
            kept = replace(line, version=number + 1, parent=parent)
        found.append(kept)
    return found


def _lost_name(name: str, lines: int) -> Lost:
    had = f" It has {lines:,} lines." if lines > 1 else ""
    return Lost(f"the name {name}", f"None of its log can be read.{had} Build its data again, with --name {name}")


def _lost_lines(root: Path, name: str, versions: Sequence[Version]) -> Iterator[Lost]:
    """The versions of lines that cannot be read, by their place among those that can."""
    kept = 0
    number = 0
    for line in files.read_small(root / "names" / f"{name}.jsonl").splitlines():
        try:
            manifests.salvage_version(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError):
            number += 1
            led = _LED_TO.search(line)
            said = f"Its line in the log cannot be read{f'; it led to manifest {led[1][:12].decode()}' if led else ''}."
            newest = " It was the newest." if kept == len(versions) else ""
            yield Lost(f"{name}@{number}", f"{said}{newest} Build its data again, with --name {name}")
        else:
            number, kept = versions[kept].version, kept + 1


def _there(root: Path, identity: str) -> bool:
    try:
        return manifests.manifest_path(root, references.follow(root, identity)).exists()
    except DamageError:
        return False
