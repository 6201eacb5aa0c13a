"""What sets two specs apart, field by field."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cachestore.keys import Json

_DIGEST = re.compile(r"[0-9a-f]{32,}")


@dataclass(frozen=True)
class Difference:
    """A field that two specs do not have alike, nested ones as ``outer.inner``; None where a spec has no such field."""

    field: str
    old: Json
    new: Json


def differences(old: Mapping[str, Json], new: Mapping[str, Json]) -> list[Difference]:
    """Every field that differs, by name; a list is one field."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    return [
        Difference(field, before.get(field), after.get(field))
        for field in sorted({*before, *after})
        if field not in before or field not in after or _typed(before[field]) != _typed(after[field])
    ]


def shown(difference: Difference) -> str:
    """A difference as people read it: ``reduce_output mean → max``, ``weights digest 1a2b3c4d… → 5e6f7a8b…``."""
    field, file = difference.field, difference.field.removeprefix("tokenizer.")
    if file != field:
        change = "added" if difference.old is None else "left out" if difference.new is None else "changed"
        return f"tokenizer file {file} {change}"
    values = (_flat(difference.old), _flat(difference.new))
    digest = " digest" if any(_DIGEST.fullmatch(item) for value in values for item in value) else ""
    return f"{field}{digest} {' → '.join(', '.join(map(_short, value)) for value in values)}"


def _leaves(spec: Mapping[str, Json], above: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in spec.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def _typed(value: Json) -> tuple[str, Json]:
    """1, 1.0 and true are three values in a fingerprint, and equal in Python."""
    return (type(value).__name__, repr(value) if isinstance(value, list | tuple) else value)


def _flat(value: Json) -> list[str]:
    if isinstance(value, list | tuple):
        return [str(item) for item in value] or ["nothing"]
    if value is None or isinstance(value, bool):
        return ["nothing" if value is None else str(value).lower()]
    return [str(value)]


def _short(value: str) -> str:
    if _DIGEST.fullmatch(value):
        return value[:8] + "…"
    return value if len(value) <= 60 else value[:59] + "…"
