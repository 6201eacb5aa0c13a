"""Pins: what runs were trained on, which gc keeps until they are gone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cachestore import files, layout, records
from cachestore import manifest as manifests
from cachestore.errors import CachestoreError, ManifestNotFound, UsageError

FOLDER = "pins"


@dataclass(frozen=True)
class Pin:
    """The manifests that a run was trained on; ``run`` is its id, ``path`` its absolute directory."""

    run: str
    path: str
    manifests: tuple[str, ...]
    created: str

    def missing(self) -> bool:
        """Whether the run is gone: none of its id lies at its path, nor beside it on its way there."""
        place = Path(self.path)
        marks = [place / "run.json", *place.parent.glob(f".{_escaped(place.name)}.new-*/run.json")]
        return all(_run_id(mark) != self.run for mark in marks)


def pins(root: Path) -> list[Pin]:
    """All pins, oldest first. Raises DamageError for one that cannot be read."""
    found = (read_pin(root, run) for run in layout.runs(root))
    return sorted((pin for pin in found if pin), key=lambda pin: (pin.created, pin.run))


def read_pin(root: Path, run: str) -> Pin | None:
    """What a run pinned, None when there is no such pin. Raises DamageError when it cannot be read."""
    return records.read(_pin_path(root, run), _pin, "Delete it; the run that it is of is then not pinned")


def write_pin(root: Path, pin: Pin) -> None:
    """Keep a run's manifests until the pin is dropped; one of the same run is replaced.

    Raises ManifestNotFound when one of them was removed meanwhile.
    """
    with records.writing(root):
        for identity in pin.manifests:
            if not manifests.is_there(root, identity):
                raise ManifestNotFound(
                    f"Manifest {identity} is no longer in the store at {root}: it was removed meanwhile. Run again."
                )
        records.write(root, _pin_path(root, pin.run), asdict(pin))


def drop_pin(root: Path, run: str) -> None:
    """Let go what a run pinned; there may be no such pin."""
    with records.names(root):
        files.remove(_pin_path(root, run))


def _pin_path(root: Path, run: str) -> Path:
    if not layout.is_run(run):
        raise UsageError(f"{run!r} is not the id of a run.")
    return root / FOLDER / f"{run}.json"


def _pin(content: Mapping[str, Any]) -> Pin:
    return Pin(
        content["run"],
        content["path"],
        tuple(records.manifest_id(identity) for identity in content["manifests"]),
        content["created"],
    )


def _run_id(mark: Path) -> object:
    """The id of the run that a file run.json marks, None where there is none."""
    try:
        found = json.loads(files.read_small(mark, 1 << 16))
    except (CachestoreError, OSError, ValueError, RecursionError):
        return None
    return found.get("id") if isinstance(found, dict) else None


def _escaped(name: str) -> str:
    """A file's name as a glob pattern that matches it alone."""
    return re.sub(r"([*?[])", r"[\1]", name)
