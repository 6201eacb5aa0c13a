"""What leads to a manifest: ids, versions of names, tags, and the pins that runs hold; and what took the place of one.

A reference is written as a manifest's id, its first 8 or more digits, ``NAME`` (its newest version), ``NAME@VERSION`` or
``NAME@TAG``. A tag freezes a version of a name. A pin keeps what a run was trained on. When rows are forgotten, ``superseded.json`` leads
from the id of the manifest that had them to that of the one without; a manifest that is there is always itself.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cachestore import files, layout, records
from cachestore import manifest as manifests
from cachestore.errors import DamageError, ManifestNotFound, UsageError, nearest
from cachestore.manifest import Version
from cachestore.pins import Pin, drop_pin, pins, read_pin, write_pin

__all__ = [
    "Pin",
    "Root",
    "Tag",
    "delete_tag",
    "drop_pin",
    "follow",
    "frozen",
    "manifest_of",
    "pins",
    "read_pin",
    "read_tag",
    "reference_to",
    "resolve",
    "roots",
    "supersede",
    "superseded",
    "tags",
    "version",
    "write_pin",
    "write_tag",
]

_TAGS, _SUPERSEDED = "tags", "superseded.json"
_PREFIX = re.compile(r"[0-9a-f]{8,63}")


@dataclass(frozen=True)
class Tag:
    """A version of a name, frozen under a word: ``name@tag``."""

    name: str
    tag: str
    version: int
    manifest: str
    created: str


@dataclass(frozen=True)
class Root:
    """Something that keeps a manifest, given by the id that is followed to now; old versions of a name may be collected."""

    manifest: str
    kind: Literal["name", "tag", "pin"]
    label: str
    """``reviews@3``, ``reviews@v1``, or the directory of a run"""
    created: str
    version: int | None = None
    name: str | None = None


def resolve(root: Path, reference: str) -> str:
    """The id of the manifest that a reference leads to; of a name and the digits of an id, the name counts.

    Raises UsageError when it cannot be a reference or could be several manifests, ManifestNotFound when it leads to none.
    """
    if layout.is_id(reference):
        return follow(root, reference)
    name, at, rest = reference.partition("@")
    if at:
        if rest.isdecimal():
            return _of_version(root, name, int(rest))
        return follow(root, read_tag(root, name, rest).manifest)
    if _PREFIX.fullmatch(reference) and reference not in manifests.names(root):
        return _of_prefix(root, reference)
    return follow(root, manifests.read_log(root, name)[-1].manifest)


def manifest_of(root: Path, reference: str) -> manifests.Manifest:
    """The manifest that a reference leads to. Raises as ``resolve``, and DamageError when it is damaged."""
    try:
        return manifests.read_manifest(root, resolve(root, reference))
    except ManifestNotFound:  # or it was rewritten between the two
        return manifests.read_manifest(root, resolve(root, reference))


def follow(root: Path, manifest_id: str) -> str:
    """The id itself when its manifest is there, else the end of the chain of what superseded it, else itself."""
    return manifest_id if _exists(root, manifest_id) else _followed(root, manifest_id, superseded(root))


def version(root: Path, name: str, number: int | None = None) -> Version:
    """One version of a name, the newest without a number. Raises ManifestNotFound naming those there are."""
    log = manifests.read_log(root, name)
    if number is None:
        return log[-1]
    for line in log:
        if line.version == number:
            return line
    there = f"versions 1 to {log[-1].version}" if len(log) > 1 else "version 1 only"
    raise ManifestNotFound(f"There is no version {number} of {name!r} in the store at {root}; it has {there}.")


def reference_to(root: Path, manifest_id: str, name: str | None = None) -> str:
    """``NAME@VERSION`` of the newest version that is that manifest, of ``name`` first, then of any; else its id."""
    for candidate in [*([name] if name else []), *manifests.names(root)]:
        with contextlib.suppress(DamageError):  # another name's log is not in the way
            for line in reversed(manifests.read_log(root, candidate)):
                if line.manifest == manifest_id:
                    return f"{candidate}@{line.version}"
    return manifest_id


# -- what took the place of a manifest ---------------------------------------------------------------------------------


def superseded(root: Path) -> dict[str, str]:
    """Old manifest id → the id that took its place."""
    path = root / _SUPERSEDED
    what = "Restore it from a backup; without it, versions that rows were forgotten from cannot be found"
    return (
        records.read(path, lambda content: {str(old): str(new) for old, new in content["manifests"].items()}, what)
        or {}
    )


def supersede(root: Path, replaced: Mapping[str, str]) -> None:
    """Add to what took the place of which manifest. The caller holds ``builders``, as ``Store.alone`` does."""
    if replaced:
        with records.names(root):
            records.write(root, root / _SUPERSEDED, {"manifests": {**superseded(root), **replaced}})


# -- tags --------------------------------------------------------------------------------------------------------------


def tags(root: Path) -> list[Tag]:
    """All tags, by name and word. Raises DamageError for one that cannot be read."""
    found = (_tag_at(_tag_path(root, name, tag)) for name, tag in layout.tags(root))
    return sorted((tag for tag in found if tag), key=lambda tag: (tag.name, tag.tag))


def read_tag(root: Path, name: str, tag: str) -> Tag:
    """One tag. Raises ManifestNotFound when the name has none of that word, naming the nearest."""
    found = _tag_at(_tag_path(root, name, tag))
    if found is None:
        manifests.read_log(root, name)  # says so when it is the name that is not there
        known = [other.tag for other in tags(root) if other.name == name]
        listed = f" Its tags: {', '.join(known[:10])}." if known else " It has no tags."
        raise ManifestNotFound(
            f"{name!r} has no tag {tag!r} in the store at {root}{nearest(tag, known) or '.'}{listed}"
        )
    return found


def frozen(root: Path, tag: Tag, log: Iterable[Version]) -> Version | None:
    """The line of its name's log that a tag froze; None in a log that was lost and begun anew, whose numbers are of other manifests."""
    target = follow(root, tag.manifest)
    for line in log:
        if line.version == tag.version and follow(root, line.manifest) == target:
            return line
    return None


def write_tag(root: Path, tag: Tag) -> None:
    """Freeze a manifest under a tag; tagging the same again changes nothing.

    Raises UsageError when the tag is another manifest's, ManifestNotFound when that of the tag is not there.
    """
    path = _tag_path(root, tag.name, tag.tag)
    with records.writing(root):
        if not _exists(root, tag.manifest):
            raise ManifestNotFound(
                f"The store at {root} holds no manifest {tag.manifest}. Build its data set again, or tag another version."
            )
        old = _tag_at(path)
        if old is None:
            records.write(root, path, asdict(tag))
        elif follow(root, old.manifest) != tag.manifest:
            raise UsageError(
                f"The tag {tag.name}@{tag.tag} is version {old.version} (manifest {old.manifest[:12]}), and a tag does not move. "
                f"Choose another, or delete it first: cachestore tag --delete {tag.name}@{tag.tag}"
            )


def delete_tag(root: Path, name: str, tag: str) -> None:
    """Delete a tag. Raises ManifestNotFound when there is none."""
    with records.names(root):
        path = _tag_path(root, name, tag)
        if not layout.exists(path):
            read_tag(root, name, tag)
        files.remove(path)  # one that cannot be read as well


# -- all of them -------------------------------------------------------------------------------------------------------


def roots(root: Path) -> list[Root]:
    """Everything that refers to manifests: every version of every name, every tag, every pin (once per manifest).

    Raises DamageError when a log, tag, pin or the map of superseded manifests cannot be read: then nobody knows what is needed.
    """
    replaced = superseded(root)
    there = set(manifests.all_manifests(root))

    def now(identity: str) -> str:
        return identity if identity in there else _followed(root, identity, replaced)

    found = [
        Root(now(line.manifest), "name", f"{name}@{line.version}", line.created, line.version, name)
        for name in manifests.names(root)
        for line in manifests.read_log(root, name)
    ]
    found += [
        Root(now(tag.manifest), "tag", f"{tag.name}@{tag.tag}", tag.created, tag.version, tag.name)
        for tag in tags(root)
    ]
    found += [Root(now(identity), "pin", pin.path, pin.created) for pin in pins(root) for identity in pin.manifests]
    return found


def _of_version(root: Path, name: str, number: int) -> str:
    line = version(root, name, number)
    found = follow(root, line.manifest)
    if not _exists(root, found) and number < version(root, name).version:  # the newest is never collected
        source = line.provenance.get("source")
        label = source.get("label") if isinstance(source, Mapping) else None
        came = f" It was built on {line.created[:10]} from {label}." if label else ""
        raise ManifestNotFound(
            f"Version {number} of {name!r} was removed from the store at {root} by gc.{came} "
            "Build that data again, as it was then and with the same encoders, and the version is back."
        )
    return found


def _of_prefix(root: Path, prefix: str) -> str:
    replaced = superseded(root)
    there = manifests.all_manifests(root)
    found = {identity for identity in there if identity.startswith(prefix)}
    found |= {_followed(root, old, replaced) for old in replaced if old.startswith(prefix) and not _exists(root, old)}
    if len(found) > 1:
        listed = ", ".join(identity[:16] for identity in sorted(found)[:5])
        raise UsageError(f"{prefix!r} begins the ids of {len(found)} manifests ({listed}, …). Give more digits.")
    if not found:
        raise ManifestNotFound(
            f"The store at {root} has no name {prefix!r}, and no manifest whose id begins so. See: cachestore ls"
        )
    return found.pop()


def _followed(root: Path, identity: str, replaced: Mapping[str, str]) -> str:
    passed = {identity}
    while identity in replaced:
        identity = replaced[identity]
        if identity in passed:
            raise DamageError(f"{root / _SUPERSEDED} leads in a circle from {identity}. Restore it from a backup.")
        if _exists(root, identity):
            break
        passed.add(identity)
    return identity


def _exists(root: Path, identity: str) -> bool:
    return manifests.is_there(root, identity)


def _tag_path(root: Path, name: str, tag: str) -> Path:
    manifests.check_name(name)
    if not layout.is_tag(tag):
        raise UsageError(
            f"{tag!r} cannot be a tag: use up to 40 letters (a-z), digits, '.', '_' and '-', beginning with a letter or digit, "
            "and not digits alone, which are the number of a version."
        )
    return root / _TAGS / f"{name}@{tag}.json"


def _tag_at(path: Path) -> Tag | None:
    def parse(content: Mapping[str, Any]) -> Tag:
        found = Tag(
            content["name"],
            content["tag"],
            int(content["version"]),
            records.manifest_id(content["manifest"]),
            content["created"],
        )
        if f"{found.name}@{found.tag}" != path.stem:
            raise ValueError("it is of another tag")
        return found

    return records.read(path, parse, "Delete it and tag again")
