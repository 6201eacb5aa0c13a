"""Every kind of encoder that opens without a network, each with payloads and what its reference library makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cachestore.encoders import Encoded, Encoder, locate, open_encoder
from tests.conformance import references, vision
from tests.store import embedding_api, tiny_image_models, tiny_models

LONG = "please refund the card that I used yesterday " * 20
TEXTS = (
    "the parcel",
    "",
    "please refund the card that I used",
    "a",
    "how long does a transfer take?",
    "  spaces \t and\nlines ",
    "Café crème, größer, naïve façade; 1234567890 !?",
    "日本語のテキスト 🙂",
    "[SEP] special [CLS] tokens <|endoftext|> </s>",
    "the parcel",
    LONG,
)
LENGTH = 32

Reference: TypeAlias = Callable[[Sequence[bytes]], NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """An encoder. ``reference`` gives the vectors (n, dim) of payloads, one by one and by other code."""

    open: Callable[[str], Encoder]
    """the encoder that stores a dtype"""
    reference: Reference
    payloads: tuple[bytes, ...] = tuple(text.encode() for text in TEXTS)
    long: tuple[bytes, ...] = (LONG.encode(), b"x" * 3000)
    """what makes a batch wide"""

    def encode(self, payloads: Sequence[bytes]) -> NDArray[Any]:
        """Vectors (n, dim) of payloads none of which is refused."""
        returned = self.open("float32").encode(payloads)
        vectors, refused = returned if isinstance(returned, Encoded) else (returned, {})
        assert not refused
        return vectors


def _built_in(settings: Mapping[str, Any], reference: Reference, **fields: Any) -> Case:
    return Case(lambda dtype: open_encoder({**settings, "dtype": dtype}), reference, **fields)


def model(folder: Path, kind: str) -> Path:
    """The directory of a tiny text model, saved once in ``folder``."""
    if not (folder / kind).exists():
        tiny_models.save(folder / kind, kind)
    return folder / kind


def text(folder: Path, kind: str, pooling: str = "mean") -> Case:
    """A tiny text model with a pooling, exact."""
    directory = model(folder, kind)
    settings = {
        "type": "auto_transformer",
        "pretrained_model_name_or_path": str(directory),
        "reduce_output": pooling,
        "max_sequence_length": LENGTH,
        "precision": "float32",
    }
    return _built_in(settings, lambda payloads: references.text(directory, payloads, LENGTH, pooling))


def _minilm(folder: Path) -> Case:
    directory = locate.packaged_minilm()
    return _built_in(
        {"type": "minilm", "precision": "float32"},
        lambda payloads: references.unit(references.text(directory, payloads, 256, "mean")),
    )


def _hashing(folder: Path) -> Case:
    return _built_in({"type": "hashing", "dim": 64}, references.hashing)


def tower(folder: Path, kind: str, pooling: str = "mean") -> Case:
    """A tiny vision model of transformers, exact."""
    directory = folder / f"image-{kind}"
    if not directory.exists():
        tiny_image_models.save(directory, kind)
    settings = {
        "type": "auto_image_transformer",
        "pretrained_model_name_or_path": str(directory),
        "reduce_output": pooling,
        "precision": "float32",
    }
    return _pictures(settings, lambda payloads: vision.tower(directory, kind, payloads, pooling))


def _torchvision(folder: Path, architecture: str) -> Case:
    path = folder / f"{architecture}.safetensors"
    if not path.exists():
        vision.save_weights(path, architecture)
    settings = {"type": "torchvision", "model": architecture, "weights_path": str(path), "precision": "float32"}
    return _pictures(settings, lambda payloads: vision.features(path, architecture, payloads))


def _pictures(settings: Mapping[str, Any], reference: Reference) -> Case:
    return _built_in(settings, reference, payloads=vision.PICTURES, long=vision.LONG)


def http(folder: Path, api: embedding_api.Api) -> Case:
    """The README's own encoder, which takes three texts at a time."""
    embedding_api.write_blocks(folder)
    module = embedding_api.load_module(folder)

    def opened(dtype: str) -> Encoder:
        own = module.ApiEncoder(api.url, "tiny", embedding_api.DIM, batch=3)
        own.spec["dtype"] = dtype
        assert isinstance(own, Encoder)
        return own

    return Case(opened, lambda payloads: np.array([embedding_api.vector(payload.decode()) for payload in payloads]))


TEXT_KINDS = tuple(tiny_models._SIZES)
CASES: Mapping[str, Callable[[Path], Case]] = {
    "hashing": _hashing,
    "minilm": _minilm,
    **{f"text {kind}": partial(text, kind=kind) for kind in TEXT_KINDS},
    **{f"image {kind}": partial(tower, kind=kind) for kind in tiny_image_models.CONFIGS},
    **{f"image {name}": partial(_torchvision, architecture=name) for name in vision.ARCHITECTURES},
}
