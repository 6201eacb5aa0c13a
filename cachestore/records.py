"""The small files of a store that are one JSON object each: read with their format and shape checked, written under the store's locks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from cachestore import files, header, layout, locks
from cachestore.errors import DamageError, StoreFormatError
from cachestore.sealed import seal, unseal

FORMAT: Final = 1
_T = TypeVar("_T")


def read(path: Path, parse: Callable[[dict[str, Any]], _T], advice: str) -> _T | None:
    """What ``parse`` makes of a JSON object, None when there is no such file."""
    try:
        content = json.loads(files.read_small(path))
        if content["format"] > FORMAT:
            raise StoreFormatError(
                f"{path} has format {content['format']}; this version reads up to {FORMAT}. Upgrade cachestore."
            )
        return parse(unseal(content))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{path} cannot be read ({error}). {advice}.") from error


def manifest_id(value: Any) -> str:
    """The id itself. Raises ValueError when it cannot be one."""
    if not isinstance(value, str) or not layout.is_id(value):
        raise ValueError(f"{value!r} is no manifest id")
    return value


def write(root: Path, path: Path, content: Mapping[str, Any]) -> None:
    """Replace such a file. Only inside ``writing``, or while the caller is alone in the store."""
    # ASCII: a path that is not UTF-8 has no other form
    data = json.dumps(seal({"format": FORMAT, **content}), sort_keys=True, indent=1) + "\n"
    files.replace_small(root, path, data.encode())


@contextlib.contextmanager
def writing(root: Path) -> Iterator[None]:
    """``builders`` keeps others from sweeping the temporary file, and whoever is alone from removing what is referred to."""
    with locks.held(root, "builders", exclusive=False, timeout=header.LOCK_SECONDS), names(root):
        yield


@contextlib.contextmanager
def names(root: Path) -> Iterator[None]:
    """For the moment in which what leads to manifests changes."""
    with locks.held(root, "names", exclusive=True, timeout=header.LOCK_SECONDS):
        yield
