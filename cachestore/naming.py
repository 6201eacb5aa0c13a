"""The name of a file that is built without one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from cachestore import dataset as datasets
from cachestore import layout
from cachestore import manifest as manifests
from cachestore.store import Store


def derived_name(store: Store, path: Path) -> str:
    """The name of a file built without one: its stem, or with its folder before it where that is another file's."""
    stem = datasets.stem(path)
    names = (
        _cleaned(f"{path.parent.name}-{stem}" + (f"-{number}" if number > 1 else "")) for number in itertools.count(1)
    )
    for name in itertools.chain([_cleaned(stem)], names):
        if name not in manifests.names(store.root):
            return name
        source: Any = store.log(name)[-1].provenance["source"]
        if source["label"] == str(path):
            return name
    raise AssertionError("the names are endless")


def _cleaned(text: str) -> str:
    """The text with everything replaced that a name cannot hold."""
    kept = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in text)
    name = kept.strip("._-").encode()[:180].decode(errors="ignore") or "data"
    return name if layout.is_name(name) else f"data-{name[:100]}"
