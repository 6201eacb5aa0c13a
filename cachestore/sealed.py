"""JSON objects that carry a check of their own: a bit that flipped in a text or a time would otherwise go unseen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

_CHECK = "check"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its ``check``: XXH3-64, in hexadecimal, of its JSON in ASCII with sorted keys and no spaces."""
    return {**content, _CHECK: _digest(content)}


def unseal(found: Mapping[str, Any]) -> dict[str, Any]:
    """The object without its ``check``. Raises ValueError when that is not the right one."""
    content = {name: value for name, value in found.items() if name != _CHECK}
    if found.get(_CHECK) != _digest(content):
        raise ValueError("its check is wrong")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
