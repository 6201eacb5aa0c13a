"""Text from data and names, safe to show on a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a file's name may hold, and a terminal obeys


def visible(text: str) -> str:
    """``text`` with what a terminal would obey written out, as ``\\x1b``."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
