"""Checking what leads to manifests: logs of names line by line, tags, pins, and the map of superseded manifests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from cachestore import files, layout, references
from cachestore import manifest as manifests
from cachestore.errors import DamageError, ManifestNotFound
from cachestore.findings import Findings, Kind, reason
from cachestore.manifest import Version
from cachestore.references import Root
from cachestore.sealed import unseal

LINES = "Run `cachestore repair`: it keeps the lines that can be read."
ASIDE = "Run `cachestore repair`: it moves the file to quarantine."
REWRITE = "Run `cachestore repair`: it writes anew what can still be read of it, and says what is lost."
LOST = (
    "Restore it from a backup, or build the data of its newest version again, which begins the name anew. "
    "What is tagged is still there as NAME@TAG."
)
BUILD = "Build its data again: only what the store lacks is encoded."


def check_roots(root: Path, findings: Findings, names: Iterable[str] | None = None) -> list[Root]:
    """What leads to manifests that are there: all of it, or only the logs and tags of ``names``."""
    found = []
    for name in manifests.names(root) if names is None else names:
        found += _check_log(root, name, findings)
    _check_logs_are_there(root, names, findings)
    found += _check_tags(root, names, findings)
    if names is None:
        found += _check_pins(root, findings)
        try:
            references.superseded(root)
        except DamageError as error:
            findings.damage("superseded", "superseded.json", reason(error), ASIDE)
    return found


def _check_logs_are_there(root: Path, names: Iterable[str] | None, findings: Findings) -> None:
    """Tags outlive the log of their name only where that was lost, or so damaged that repair kept nothing of it."""
    words: dict[str, list[str]] = {}
    for name, word in layout.tags(root):
        words.setdefault(name, []).append(f"{name}@{word}")
    for name in words.keys() - set(
        layout.names(root)
    ):  # a log is there before its tags, so it is looked for after them
        if names is None or name in names:
            said = f"It is gone, though there are tags of the name: {', '.join(words[name])}."
            findings.damage("name", f"names/{name}.jsonl", said, LOST)


@dataclass(frozen=True)
class ReadableLog:
    """What can be read of a log: its versions, which of them have a wrong check, and how many lines are no version."""

    versions: list[Version]
    doubted: set[int]
    broken: int


def readable_log(root: Path, name: str) -> ReadableLog:
    """What can be read of a log. FileNotFoundError passes through."""
    found = ReadableLog([], set(), 0)
    for line in files.read_small(root / "names" / f"{name}.jsonl").splitlines():
        try:
            content = json.loads(line)
            found.versions.append(manifests.salvage_version(content))
        except (ValueError, KeyError, TypeError, RecursionError):
            found = replace(found, broken=found.broken + 1)
            continue
        try:
            unseal(content)
        except ValueError:
            found.doubted.add(len(found.versions) - 1)
    return found


def _check_log(root: Path, name: str, findings: Findings) -> list[Root]:
    what = f"names/{name}.jsonl"
    try:
        log = manifests.read_log(root, name)
    except ManifestNotFound:
        return []
    except DamageError as error:
        findings.damage("log", what, reason(error), LINES)
        try:
            log = readable_log(root, name).versions
        except (DamageError, FileNotFoundError):
            return []
    for before, line in zip([None, *log], log, strict=False):
        _check_line(what, before, line, findings)
    head = log[-1].version if log else 0
    return [
        Root(_now(root, line.manifest), "name", f"{name}@{line.version}", line.created, line.version, name)
        for line in log
        if _there(root, f"{name}@{line.version}", line.manifest, "manifest", findings, optional=line.version < head)
    ]


def _check_line(what: str, before: Version | None, line: Version, findings: Findings) -> None:
    number, parent = (before.version, before.manifest) if before else (0, None)
    follows, same = line.version == number + 1, line.parent == parent
    if line.version <= number or follows != same:
        findings.damage("log", what, f"The line of version {line.version} does not follow the one before it.", LINES)
    elif not follows:
        findings.notice("log", what, f"Versions {number + 1} to {line.version - 1} are missing.", "They were lost.")


def _check_tags(root: Path, names: Iterable[str] | None, findings: Findings) -> list[Root]:
    wanted = None if names is None else set(names)
    found = []
    for name, word in layout.tags(root):
        what = f"tags/{name}@{word}.json"
        if wanted is not None and name not in wanted:
            continue
        try:
            tag = references.read_tag(root, name, word)
        except ManifestNotFound:
            continue  # deleted meanwhile
        except DamageError as error:
            findings.damage("tag", what, reason(error), REWRITE)
            continue
        label = f"{tag.name}@{tag.tag}"
        if _there(root, label, tag.manifest, "tag", findings):
            found.append(Root(_now(root, tag.manifest), "tag", label, tag.created, tag.version, tag.name))
    return found


def _check_pins(root: Path, findings: Findings) -> list[Root]:
    found = []
    for run in layout.runs(root):
        try:
            pin = references.read_pin(root, run)
        except DamageError as error:
            findings.damage("pin", f"pins/{run}.json", reason(error), REWRITE)
            continue
        if pin is not None:
            found += [
                Root(_now(root, identity), "pin", pin.path, pin.created)
                for identity in pin.manifests
                if _there(root, f"run {pin.path}", identity, "pin", findings)
            ]
    return found


def _there(root: Path, label: str, identity: str, kind: Kind, findings: Findings, *, optional: bool = False) -> bool:
    """Whether the manifest that something leads to is there; says so if not."""
    now = _now(root, identity)
    if manifests.is_there(root, now):
        return True
    if optional:
        findings.notice("manifest", label, f"Its manifest {now[:12]} was removed by gc, or lost.", BUILD)
    else:
        findings.damage(kind, label, f"Its manifest {now[:12]} is gone.", BUILD)
    return False


def _now(root: Path, identity: str) -> str:
    try:
        return references.follow(root, identity)
    except DamageError:  # of the map, which is reported by itself
        return identity
