"""Frozen models that turn the bytes of a cell into a vector, and how to open one.

Opening an encoder settles its spec and so its fingerprint. torch and transformers are imported, and weights loaded,
only when it encodes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from cachestore.encoders import image_specs
from cachestore.encoders.hashing import HashingEncoder
from cachestore.encoders.image_settings import ImageTransformerSettings, TorchvisionSettings
from cachestore.encoders.imported import ImportedEncoder, name
from cachestore.encoders.model_files import sha256_of_file
from cachestore.encoders.spec import (
    AnySettings,
    HashingSettings,
    ImportedSettings,
    Settings,
    parse_settings,
    resolve,
)
from cachestore.encoders.text_settings import TextSettings
from cachestore.encoders.text_specs import share_key
from cachestore.errors import ConfigError
from cachestore.keys import Fingerprint, Json

__all__ = [
    "Encoded",
    "Encoder",
    "EncoderLike",
    "HashingSettings",
    "ImageTransformerSettings",
    "ImportedEncoder",
    "ImportedSettings",
    "Settings",
    "TextSettings",
    "TorchvisionSettings",
    "label",
    "open_encoder",
    "parse_settings",
    "sha256_of_file",
    "template_of",
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
    batch_tokens: int | None = None

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32]:
        if not payloads:
            return np.empty((0, self.dim), np.float32)
        return self.encode_for([self], payloads)[0]

    @property
    def share(self) -> Hashable:
        return self.directory, share_key(self.spec)

    def encode_for(self, encoders: Sequence[_TextEncoder], payloads: Sequence[bytes]) -> list[NDArray[np.float32]]:
        from cachestore.encoders import text  # torch and transformers: not before there is something to encode

        specs, dims = [encoder.spec for encoder in encoders], [encoder.dim for encoder in encoders]
        return text.encode_many(specs, self.directory, dims, payloads, batch_tokens=self.batch_tokens)


@dataclass(frozen=True)
class _ImageEncoder:
    payload: ClassVar = "image"
    spec: Mapping[str, Json]
    dim: int
    place: Path
    batch_size: int | None = None

    def encode(self, payloads: Sequence[bytes]) -> Encoded:
        return self.encode_for([self], payloads)[0]

    @property
    def share(self) -> Hashable:
        return self.place, image_specs.share_key(self.spec)

    def encode_for(self, encoders: Sequence[_ImageEncoder], payloads: Sequence[bytes]) -> list[Encoded]:
        if not payloads:
            return [Encoded(np.empty((0, encoder.dim), np.float32), {}) for encoder in encoders]
        from cachestore.encoders import image  # torch: not before there is something to encode

        specs, dims = [encoder.spec for encoder in encoders], [encoder.dim for encoder in encoders]
        vectors, refused = image.encode_many(specs, self.place, dims, payloads, batch_size=self.batch_size)
        return [Encoded(array, refused) for array in vectors]


def template_of(encoder: EncoderLike) -> str | None:
    """The template that an encoder's texts are rendered by from several columns, None where a cell is the text."""
    settings = parse_settings(encoder) if isinstance(encoder, str | Mapping) else encoder
    template: str | None = getattr(settings, "prompt_template", None)
    return template


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
        return _TextEncoder(resolved.spec, resolved.dim, resolved.directory, settings.batch_tokens)
    if isinstance(settings, TorchvisionSettings | ImageTransformerSettings):
        resolved = resolve(settings, digest=digest, known=known)
        return _ImageEncoder(resolved.spec, resolved.dim, resolved.directory, settings.batch_size)
    if isinstance(settings, Encoder):
        return settings
    raise ConfigError(f"encoder: must be a type, a mapping, settings or an encoder, not {type(encoder).__name__}")


def label(spec: Mapping[str, Json]) -> str:
    """A short name of a spec for people: its kind, what sets it apart, and its precision as computed→stored."""
    if spec.get("kind") == "text":
        parts = ["text", spec["model_type"], spec["reduce_output"], spec["max_sequence_length"]]
        parts += ["normalized"] if spec["normalize"] else []
        parts += [f"layer {spec['layer']}"] if "layer" in spec else []
        parts += [f"prompt {spec['prompt']!r}"] if "prompt" in spec else []
        return " ".join(map(str, parts)) + f" {spec['precision']}→{spec['dtype']}"
    if spec.get("kind") == "image":
        parts = ["image", spec.get("architecture", spec.get("model_type")), spec.get("reduce_output", "features")]
        return " ".join(map(str, parts)) + f" {spec['precision']}→{spec['dtype']}"
    if spec.get("kind") == "imported":
        return f"imported {name(spec)} {spec['dim']}→{spec['dtype']}"
    return " ".join(str(part) for part in (spec.get("kind", "custom"), spec.get("dim")) if part is not None)
