"""Mending the log of a name: lines that cannot be read are dropped, and what one line says twice with its neighbour mends the other."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cachestore import files, references
from cachestore import manifest as manifests
from cachestore.errors import DamageError
from cachestore.manifest import Version
from cachestore.verify_names import readable_log


@dataclass(frozen=True)
class LogMend:
    """A log as it will be. Without any version the name is gone."""

    name: str
    versions: tuple[Version, ...]
    dropped: int
    mended: int


def plan_log(root: Path, name: str) -> LogMend:
    """What can be kept of the log of a name."""
    try:
        log = readable_log(root, name)
    except (DamageError, FileNotFoundError):
        return LogMend(name, (), 1, 0)
    versions = _mended(root, log.versions)
    changed = {at for at, version in enumerate(versions) if version != log.versions[at]}
    return LogMend(name, tuple(versions), log.broken, len(changed | log.doubted))


def carry_out(root: Path, mend: LogMend) -> None:
    """Keep the log as it is in quarantine, and replace it. The caller holds ``builders`` alone, and ``names``."""
    path = root / "names" / f"{mend.name}.jsonl"
    if mend.versions:
        kept = root / "quarantine" / f"{path.name}.{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(FileNotFoundError, DamageError):  # a line less is no reason to stop
            files.replace_small(root, kept, files.read_small(path))
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


def _there(root: Path, identity: str) -> bool:
    try:
        return manifests.manifest_path(root, references.follow(root, identity)).exists()
    except DamageError:
        return False
