"""Names as a whole: what their newest version is, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachestore import manifest, references, shard
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.manifest import Manifest, Version


@dataclass(frozen=True)
class Name:
    """A name of the store: its head manifest and how many versions its log holds."""

    name: str
    versions: tuple[Version, ...]
    manifest: Manifest | None
    fault: str = ""
    """why there is no manifest: its log or file is damaged or gone"""

    @property
    def nbytes(self) -> int:
        """Bytes of the head's vectors as its rows use them; rows that share a vector count each."""
        if self.manifest is None:
            return 0
        counts: Any = self.versions[-1].provenance["vectors"]
        return sum(
            counts[column.name] * column.dim * shard.stored_dtype(column.spec).itemsize
            for column in self.manifest.columns
        )


def heads(root: Path) -> list[Name]:
    """All names of a store, sorted."""
    return [head(root, name) for name in manifest.names(root)]


def head(root: Path, name: str) -> Name:
    """A name as its log and files say it is."""
    log: list[Version] = []
    try:
        log = manifest.read_log(root, name)
        head = references.follow(root, log[-1].manifest)
        return Name(name, tuple(log), manifest.read_manifest(root, head))
    except (DamageError, ManifestNotFound) as error:
        return Name(name, tuple(log), None, str(error))
