"""The header of a store, store.json: what makes a directory a store, and which version may open it."""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

from cachestore import files, layout, locks
from cachestore.errors import StoreFormatError, StoreNotFound
from cachestore.sealed import seal, unseal

FORMAT = 1
LOCK_SECONDS = 30.0
_HEADER = "store.json"
_OWN = {_HEADER, "tmp", "locks"}  # what a directory may hold and still become a store


def check(root: Path) -> None:
    """Raises StoreNotFound when there is no store at ``root``, StoreFormatError when this version cannot open it."""
    path = root / _HEADER
    try:
        header = json.loads(files.read_small(path))
        number, features = int(header["format"]), list(header["features"])
        if number <= FORMAT and not features:
            unseal(header)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFound(
            f"There is no store at {root}. Create it by a build, or name another with --store."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreFormatError(
            f"{path} is not the header of a store ({error}). Choose another directory with --store; if it is one, "
            "`cachestore repair` writes its header anew."
        ) from error
    if number > FORMAT or features:
        needs = f" with {', '.join(features)}" if features else ""
        raise StoreFormatError(
            f"The store at {root} has format {number}{needs}; this version reads up to {FORMAT}. "
            "Upgrade cachestore; nothing was changed."
        )


def create(root: Path) -> None:
    """Make ``root`` a store where it is none yet; of several processes that try at once, one does.

    Raises StoreFormatError when the directory holds something else, StoreNotFound when it cannot be one.
    """
    path = root / _HEADER
    if layout.exists(path):
        return
    _refuse_strangers(root)
    files.make_folder(root, mode=0o700)  # embeddings are personal data
    # "builders" keeps a writer that is already in from sweeping the header while it is a temporary file
    with (
        locks.held(root, "index", exclusive=True, timeout=LOCK_SECONDS),
        locks.held(root, "builders", exclusive=False, timeout=LOCK_SECONDS),
    ):
        if not path.exists():
            renew(root)


def renew(root: Path) -> None:
    """Write a header as of a new store, in the place of one that is lost. The caller holds ``builders``."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    header = {"format": FORMAT, "features": [], "id": uuid.uuid4().hex, "created": created}
    files.replace_small(root, root / _HEADER, (json.dumps(seal(header)) + "\n").encode())


def _refuse_strangers(root: Path) -> None:
    try:
        found = {entry.name for entry in os.scandir(root)}
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreNotFound(f"{root} cannot be a store: {error.strerror}. Name a directory with --store.") from error
    strangers = sorted(found - _OWN)
    if strangers and _HEADER not in found:  # else somebody made it a store just now
        raise StoreFormatError(
            f"{root} is not a store, and not empty (it holds {strangers[0]!r}). Name an empty or new directory with --store."
        )
