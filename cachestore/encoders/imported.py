"""Vectors from elsewhere, such as an API model's: known by a spec that their owner declares, imported and never computed here.

``declared`` is whatever tells these vectors from others (model, dimensions, prompt, …). It is part of the fingerprint word
for word, so one changed letter means other vectors; the fingerprint is never that of an encoder that computes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cachestore.errors import ConfigError, EncoderError
from cachestore.keys import Json

_DTYPES: Final = ("float16", "float32")
_MAX_DIM: Final = 1 << 20
_SHOWN: Final = 60


@dataclass(frozen=True)
class ImportedEncoder:
    """Stands for the model that made imported vectors. It finds what is stored and encodes nothing."""

    spec: Mapping[str, Json]
    dim: int

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        """An empty array for no payloads. Raises EncoderError for any: their vectors must be imported."""
        if payloads:
            raise self.lacking(len(payloads), payloads[0])
        return np.empty((0, self.dim), np.float32)

    def lacking(self, count: int, first: bytes) -> EncoderError:
        """The error for so many texts without an imported vector."""
        text = first.decode(errors="replace")
        shown = repr(_short(text))
        texts = "1 text has" if count == 1 else f"{count:,} texts have"
        return EncoderError(
            f"{texts} no imported vector under this spec ({name(self.spec)}); the first is {shown}. "
            "Import them first (see cachestore import --help); cachestore explain counts them in all data."
        )


def read_declared(path: Path) -> dict[str, Any]:
    """What a spec file declares. Raises UsageError when it cannot be read, ConfigError when it is no mapping."""
    from cachestore import yaml_source  # and with it yaml, which every start would pay for

    return yaml_source.read(path, what="spec", needs=("dim",))


def declare(content: Mapping[str, Any]) -> dict[str, Json]:
    """The spec of vectors that ``content`` declares: ``dim``, perhaps ``dtype``, and all else as it stands.

    Raises ConfigError for a spec without ``dim``, one that says nothing of where the vectors come from, and values JSON lacks.
    """
    dim, dtype = content.get("dim"), content.get("dtype", "float16")
    if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= _MAX_DIM:
        was = f", not {_shown(dim)}" if "dim" in content else "; it is missing"
        raise ConfigError(f"dim: must be the length of the vectors, from 1 to {_MAX_DIM}{was}")
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype: must be {' or '.join(_DTYPES)}, what is stored, not {_shown(dtype)}")
    declared = {key: _plain(value, str(key)) for key, value in content.items() if key not in ("dim", "dtype")}
    if not declared:
        raise ConfigError("the spec must say what the vectors come from, such as model: text-embedding-3-small")
    return {"kind": "imported", "declared": declared, "dim": dim, "dtype": dtype}


def name(spec: Mapping[str, Json]) -> str:
    """The declared name, model and type, those there are; else all that was declared, in short."""
    declared = spec.get("declared")
    if not isinstance(declared, Mapping):  # somebody's own encoder with a spec of that kind
        return "declared"
    named = (declared.get(key) for key in ("name", "model", "type"))
    words = [value for value in named if isinstance(value, str) and value.strip()] or list(_flat(declared))
    return _short(" ".join(" ".join(words).split()))


def _flat(declared: Mapping[str, Json], where: str = "") -> Iterator[str]:
    for key, value in declared.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}={value if isinstance(value, str) else json.dumps(value)}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _plain(value: Any, where: str) -> Json:
    """A JSON value of plain Python types. Raises ConfigError naming the place of anything else."""
    match value:
        case None | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ConfigError(f"{where}: has no UTF-8 form") from None
            return value
        case Mapping():
            odd = next((key for key in value if not isinstance(key, str)), None)
            if odd is not None:
                raise ConfigError(f"{where}: keys are text, not {type(odd).__name__}")
            return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{where}.{at}") for at, item in enumerate(value)]
    raise ConfigError(
        f"{where}: must be text, a finite number, true, false, null, a list or a mapping, not {_shown(value)}"
    )


def _shown(value: object) -> str:
    from cachestore import yaml_source

    return yaml_source.shown(value)
