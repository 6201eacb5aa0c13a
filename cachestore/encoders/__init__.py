"""Frozen models that turn the bytes of a cell into a vector, and how to open one.

Opening an encoder settles its spec and so its fingerprint. torch and transformers are imported, and weights loaded,
only when it encodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cachestore.encoders.hashing import HashingEncoder
from cachestore.encoders.imported import ImportedEncoder, name
from cachestore.encoders.spec import (
    AnySettings,
    HashingSettings,
    ImportedSettings,
    Settings,
    TextSettings,
    parse_settings,
    resolve,
)
from cachestore.errors import ConfigError
from cachestore.keys import Fingerprint, Json

__all__ = [
    "Encoded",
    "Encoder",
    "EncoderLike",
    "HashingSettings",
    "ImportedEncoder",
    "ImportedSettings",
    "Settings",
    "TextSettings",
    "label",
    "open_encoder",
    "parse_settings",
    "sha256_of_file",
]


class Encoded(NamedTuple):
    """Vectors (n, dim) of n payloads, and by row why one has none: such a row of ``vectors`` counts for nothing."""

    vectors: NDArray[np.float32]
    refused: Mapping[int, str]


@runtime_checkable
class Encoder(Protocol):
    """A frozen model: payloads to one vector each. Its fingerprint is that of its ``spec``."""

    @property
    def spec(self) -> Mapping[str, Json]:
        """Everything that can change a vector by intent; ``dtype`` is what vectors are stored as."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32] | Encoded:
        """(len(payloads), dim) vectors in the order given; a vector depends on its own payload alone."""


EncoderLike: TypeAlias = str | Mapping[str, Any] | AnySettings | Encoder


@dataclass(frozen=True)
class _TextEncoder:
    spec: Mapping[str, Json]
    dim: int
    directory: Path

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        if not payloads:
            return np.empty((0, self.dim), np.float32)
        from cachestore.encoders import text  # torch and transformers: not before there is something to encode

        return text.encode(self.spec, self.directory, self.dim, payloads)


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def never(fingerprint: Fingerprint) -> bool:
    """There is no store that could hold vectors of ``fingerprint``."""
    return False


def open_encoder(
    encoder: EncoderLike,
    *,
    digest: Callable[[Path], str] = sha256_of_file,
    known: Callable[[Fingerprint], bool] = never,
) -> Encoder:
    """An encoder from its type, mapping or settings; an Encoder passes through. Loads no model.

    ``digest(path)`` gives the SHA-256 of a file in hexadecimal; ``known(fingerprint)`` tells whether a store holds its
    vectors. Both are the store's, to remember digests and to settle ``precision: auto``.
    Raises ConfigError for faulty settings, EncoderError when the model cannot be found, trusted or used as asked.
    """
    settings = parse_settings(encoder) if isinstance(encoder, str | Mapping) else encoder
    if isinstance(settings, HashingSettings):
        spec = resolve(settings, digest=digest, known=known).spec
        return HashingEncoder(spec, settings.dim, settings.ngram_range, settings.lowercase, settings.normalize)
    if isinstance(settings, ImportedSettings):
        resolved = resolve(settings, digest=digest, known=known)
        return ImportedEncoder(resolved.spec, resolved.dim)
    if isinstance(settings, TextSettings):
        resolved = resolve(settings, digest=digest, known=known)
        return _TextEncoder(resolved.spec, resolved.dim, resolved.directory)
    if isinstance(settings, Encoder):
        return settings
    raise ConfigError(f"encoder: must be a type, a mapping, settings or an encoder, not {type(encoder).__name__}")


def label(spec: Mapping[str, Json]) -> str:
    """A short name of a spec for people: its kind, what sets it apart, and its precision as computed→stored."""
    if spec.get("kind") == "text":
        parts = ["text", spec["model_type"], spec["reduce_output"], spec["max_sequence_length"]]
        parts += ["normalized"] if spec["normalize"] else []
        return " ".join(map(str, parts)) + f" {spec['precision']}→{spec['dtype']}"
    if spec.get("kind") == "imported":
        return f"imported {name(spec)} {spec['dim']}→{spec['dtype']}"
    return " ".join(str(part) for part in (spec.get("kind", "custom"), spec.get("dim")) if part is not None)
