"""The journal of a forgetting: the keys that it takes out, on disk from before it changes anything until it is done."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from cachestore import files, records
from cachestore.errors import DamageError
from cachestore.findings import Findings, reason
from cachestore.keys import SIZE

JOURNAL: Final = "forgetting.json"
RESUME: Final = "cachestore forget --resume"
_AGAIN = "Delete that file and run the same forget again; what it was to remove may still be in the store"
_KEY = re.compile(rf"[0-9a-f]{{{2 * SIZE}}}")


def begin(root: Path, keys: Iterable[bytes]) -> None:
    """Write the journal. Only inside ``Store.alone``."""
    records.write(root, root / JOURNAL, {"keys": [each.hex() for each in keys]})


def journal(root: Path) -> set[bytes] | None:
    """The keys of a forgetting that is not finished; None when there is none. Raises DamageError, StoreFormatError."""
    return records.read(root / JOURNAL, lambda content: {_key(each) for each in content["keys"]}, _AGAIN)


def end(root: Path) -> None:
    """Remove the journal, as the last thing that a forgetting does."""
    files.remove(root / JOURNAL)


def interrupted(root: Path) -> str | None:
    """What to tell whoever uses a store in which a forgetting is not finished; None when there is none. Reads no content."""
    if not (root / JOURNAL).exists():
        return None
    return f"A forget was cut short, or is at work just now: what it removes may still be there. To finish it: {RESUME}"


def check_journal(root: Path, findings: Findings) -> None:
    """Report a forgetting that is not finished, and a journal that cannot be read."""
    try:
        if journal(root) is not None:
            said = "A forget was cut short, or is at work just now: what it removes may still be there."
            findings.notice("leftover", JOURNAL, said, f"Run `{RESUME}`.")
    except DamageError as error:
        findings.damage("forget", JOURNAL, reason(error), f"{_AGAIN}.")


def _key(value: Any) -> bytes:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise ValueError("one of its keys is none")
    return bytes.fromhex(value)
