"""Identity: what names an encoder (Fingerprint) and one of its vectors (Key). Pure functions of bytes.

Both are SHA-256 over an injective encoding: every value carries a type tag and every variable-length value its length,
so two different inputs never give the same bytes to hash.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NewType, TypeAlias

import numpy as np
from numpy.typing import NDArray

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None

Fingerprint = NewType("Fingerprint", bytes)
Key = NewType("Key", bytes)

SIZE = 32
_FINGERPRINT_DOMAIN = b"cachestore.fingerprint.1"
_KEY_DOMAIN = b"cachestore.key.1"


def canonical(value: Json) -> bytes:
    """An injective byte encoding of a JSON-like value; mappings are ordered by key, floats are exact.

    Raises TypeError for anything JSON does not have (bytes, NaN, a non-string mapping key).
    """
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def fingerprint(spec: Mapping[str, Json]) -> Fingerprint:
    """32 bytes naming a frozen encoder by everything in its resolved spec."""
    return Fingerprint(hashlib.sha256(_FINGERPRINT_DOMAIN + canonical(spec)).digest())


def key(encoder: Fingerprint, payload: bytes) -> Key:
    """32 bytes naming the vector of ``payload`` by one frozen encoder."""
    # needs no separator: a fingerprint is always 32 bytes
    return Key(hashlib.sha256(_KEY_DOMAIN + encoder + payload).digest())


def keys(encoder: Fingerprint, payloads: Iterable[bytes | None]) -> list[Key | None]:
    """The key of every payload, None where the payload is None; the same as ``key`` for each, faster."""
    begun = hashlib.sha256(_KEY_DOMAIN + encoder).copy
    found: list[Key | None] = []
    add = found.append
    for payload in payloads:
        if payload is None:
            add(None)
            continue
        digest = begun()
        digest.update(payload)
        add(digest.digest())  # type: ignore[arg-type]  # a call of Key() for each would be felt
    return found


def split(joined: bytes) -> frozenset[Key]:
    """The keys whose bytes are joined."""
    found: list[Key] = np.frombuffer(joined, f"V{SIZE}").tolist()
    return frozenset(found)


def prefixes(keys: NDArray[np.void]) -> NDArray[np.uint64]:
    """The first eight bytes of keys (n,) as numbers (n,) that order as the keys do."""
    return np.ascontiguousarray(keys).view(">u8")[:: SIZE // 8].astype(np.uint64)


def _encode(value: Json, parts: list[bytes]) -> None:
    match value:
        case None:
            parts.append(b"n")
        case bool():  # before int: True is an int
            parts.append(b"t" if value else b"f")
        case int():
            _sized(b"i", str(value).encode(), parts)
        case float():
            if math.isnan(value):
                raise TypeError("a spec cannot hold NaN: it is not equal to itself")
            parts.append(b"d" + struct.pack(">d", value))
        case str():
            _sized(b"s", value.encode(), parts)
        case Mapping():
            parts.append(b"m" + struct.pack(">Q", len(value)))
            for name in sorted(value):
                if not isinstance(name, str):
                    raise TypeError(f"a spec's keys are strings, not {type(name).__name__}")
                _encode(name, parts)
                _encode(value[name], parts)
        case bytes() | bytearray():
            raise TypeError("a spec holds JSON values only; encode bytes as hexadecimal text")
        case Sequence():
            parts.append(b"l" + struct.pack(">Q", len(value)))
            for item in value:
                _encode(item, parts)
        case _:
            raise TypeError(f"a spec holds JSON values only, not {type(value).__name__}")


def _sized(tag: bytes, data: bytes, parts: list[bytes]) -> None:
    parts.append(tag + struct.pack(">Q", len(data)) + data)
