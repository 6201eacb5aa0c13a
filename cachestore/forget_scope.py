"""What a forgetting deletes whole because old bytes may lie in it, and what it does not look at because it is not the store's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cachestore import layout
from cachestore.forget_journal import JOURNAL
from cachestore.gc_rules import Item, items

_PURGED: Final = ("trash", "quarantine", "tmp")
_DAMAGED: Final = "index.damaged-"
_AT_TOP: Final = {
    *layout.CONTENT,
    *_PURGED,
    *("names", "tags", "pins", "index", "locks"),
    *("store.json", "superseded.json", "audit.jsonl", JOURNAL),
}


def purgeable(root: Path) -> list[Item]:
    """What may hold forgotten bytes and is not needed: trash, quarantine, temporary files, damaged indexes."""
    places = [(root / folder, "") for folder in _PURGED] + [(root, _DAMAGED)]
    return [item for folder, prefix in places for item in items(folder, prefix)]


def foreign(root: Path) -> list[Path]:
    """Files and folders in the store's folder that are none of its own, sorted: nothing reads them, and they may hold anything.

    Those beside the index go with it when it is filled anew.
    """
    at_top = [
        Path(entry.path)
        for entry in layout.entries(root)
        if entry.name not in _AT_TOP and not entry.name.startswith(_DAMAGED)
    ]
    return sorted({*at_top, *layout.strays(root)})
