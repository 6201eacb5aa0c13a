"""Mending tags, pins and the map of superseded manifests, each a small file that says little, most of it twice.

A tag's name and word, and a pin's run, are those of its file's name. An id of 64 digits that the damaged file still shows and that a
manifest has is not there by chance; that of a tag must also be one of its name's log, where that is whole. What took the place
of which manifest stands in the audit of forgettings as well.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cachestore import files, records
from cachestore import manifest as manifests
from cachestore.errors import DamageError
from cachestore.manifest import Version
from cachestore.references import Pin, Tag, superseded
from cachestore.sealed import unseal

SUPERSEDED = "superseded.json"
_AUDIT = "audit.jsonl"
_ID = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_PAIR = re.compile(rb'"([0-9a-f]{64})":\s*"([0-9a-f]{64})"')


@dataclass(frozen=True)
class RecordMend:
    """A small file that is written anew; ``path`` is relative to the store."""

    path: str
    content: Tag | Pin | Mapping[str, str]
    said: str
    """from what, and what of it is to be checked"""


@dataclass(frozen=True)
class Lost:
    """Something that a repair cannot bring back."""

    what: str
    said: str
    """what of it is known, and what to do"""


def plan_superseded(root: Path) -> RecordMend | None:
    """The map of superseded manifests as the audit and what is left of the file tell it, None when the file lacks nothing of that."""
    told = _audited(root)
    try:
        known, whole = superseded(root), True
    except DamageError:
        found = _PAIR.findall(_bytes(root / SUPERSEDED))
        known, whole = {old.decode(): new.decode() for old, new in found}, False
    everything = {**known, **told} if not whole else {**told, **known}
    lacking = [old for old in everything.keys() - known.keys() if there(root, now(root, old, everything))]
    if whole and not lacking:
        return None
    if not everything:
        return None
    return RecordMend(SUPERSEDED, everything, "from the audit" if told else "from what was readable, check it")


def now(root: Path, identity: str, replaced: Mapping[str, str]) -> str:
    """As ``references.follow``, by a map that is not written yet."""
    passed: set[str] = set()
    while identity in replaced and identity not in passed and not there(root, identity):
        passed.add(identity)
        identity = replaced[identity]
    return identity


def there(root: Path, identity: str) -> bool:
    """Whether the file of a manifest is there."""
    return manifests.manifest_path(root, identity).exists()


def forgotten_shards(root: Path) -> set[str]:
    """Ids of shards of which rows were forgotten, by the audit."""
    found: set[str] = set()
    for line in _audit(root):
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            found.update(line["shards"])
    return found


def plan_tag(
    root: Path, path: Path, log: Sequence[Version], whole: bool, replaced: Mapping[str, str]
) -> RecordMend | Lost:
    """A damaged tag of which the id can be read; ``log`` is that of its name, and ``whole`` if nothing of it was lost."""
    name, _, word = path.stem.rpartition("@")
    lost = Lost(
        f"the tag {name}@{word}", f"What it froze cannot be read. Tag it again: cachestore tag {name}@VERSION {word}"
    )
    found = _Read(path)
    if found.sealed or len(found.ids) != 1:
        return lost
    (identity,) = found.ids
    target = now(root, identity, replaced)
    versions = [line.version for line in log if now(root, line.manifest, replaced) == target]
    number = found.number("version")
    if versions:
        number = number if number in versions else versions[-1]
    elif whole or number is None or not there(root, target):
        return lost
    tag = Tag(name, word, number, identity, found.created())
    said = f"from what was readable, check it: {name}@{word} is version {number}, manifest {target[:12]}"
    return RecordMend(f"tags/{path.name}", tag, said)


def plan_pin(root: Path, path: Path, replaced: Mapping[str, str]) -> RecordMend | Lost:
    """A damaged pin of which an id can be read."""
    found = _Read(path)
    kept = [identity for identity in found.ids if there(root, now(root, identity, replaced))]
    if found.sealed or not kept:
        where = f", in {found.text('path')}" if found.text("path") else ""
        said = f"What it was trained on{where} cannot be read, and is no longer kept for it. Tag that to keep it."
        return Lost(f"the pin of run {path.stem}", said)
    place = found.text("path") or f"(the directory of run {path.stem})"
    said = f"from what was readable, check it: the run in {place} keeps " + ", ".join(one[:12] for one in kept)
    return RecordMend(f"pins/{path.name}", Pin(path.stem, place, tuple(kept), found.created()), said)


def carry_out(root: Path, mend: RecordMend) -> None:
    """Keep the file as it is in quarantine, and write it anew. The caller holds ``builders`` alone, and ``names``."""
    path = root / mend.path
    keep(root, path)
    content = {"manifests": dict(mend.content)} if isinstance(mend.content, Mapping) else asdict(mend.content)
    records.write(root, path, content)


def keep(root: Path, path: Path) -> None:
    """Copy a small damaged file to quarantine, if it can be read; it will be replaced at its place as one step."""
    with contextlib.suppress(FileNotFoundError, DamageError):  # that it cannot be kept is no reason to stop
        files.replace_small(root, root / "quarantine" / f"{path.name}.{uuid.uuid4().hex[:8]}", files.read_small(path))


class _Read:
    """What is readable of a damaged file of one JSON object."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = _bytes(path)
        self.ids = list(dict.fromkeys(found.decode() for found in _ID.findall(self._data)))
        self.sealed = False
        """whether its check is right, so that nothing is damaged and it is no file of this place"""
        with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
            unseal(json.loads(self._data))
            self.sealed = True

    def text(self, field: str) -> str | None:
        found = re.search(rb'"%s":\s*("(?:[^"\\]|\\.)*")' % field.encode(), self._data)
        try:
            value = json.loads(found[1]) if found else None
        except ValueError:
            return None
        return value if isinstance(value, str) and value and value.isprintable() else None

    def number(self, field: str) -> int | None:
        found = re.search(rb'"%s":\s*(\d{1,9})\b' % field.encode(), self._data)
        return int(found[1]) if found else None

    def created(self) -> str:
        """When it was made, else when its file was."""
        try:
            return datetime.fromisoformat(self.text("created") or "").isoformat(timespec="seconds")
        except ValueError:
            return datetime.fromtimestamp(self._path.lstat().st_mtime, UTC).isoformat(timespec="seconds")


def _bytes(path: Path) -> bytes:
    try:
        return files.read_small(path)
    except (FileNotFoundError, DamageError):
        return b""


def _audited(root: Path) -> dict[str, str]:
    """What took the place of which manifest by the audit; what cannot be read of it says nothing."""
    found: dict[str, str] = {}
    for line in _audit(root):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            found.update({records.manifest_id(old): records.manifest_id(new) for old, new in line["manifests"].items()})
    return found


def _audit(root: Path) -> Iterator[dict[str, Any]]:
    for line in _bytes(root / _AUDIT).splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(line)
