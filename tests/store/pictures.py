"""An encoder of pictures without a model, for tests of what stands around one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cachestore.encoders import Encoded
from cachestore.encoders.pictures import Decoder
from cachestore.keys import Json
from tests.store.counting import CountingEncoder


class CountingPictures(CountingEncoder):
    """Takes whatever begins with "picture" for one, and refuses the rest."""

    payload = "image"

    def __init__(self, **settings: Json) -> None:
        super().__init__(**{"kind": "counting pictures", **settings})  # type: ignore[arg-type]

    def encode(self, payloads: Sequence[bytes]) -> Encoded:  # type: ignore[override]
        refused = {
            row: "is not a picture" for row, payload in enumerate(payloads) if not payload.startswith(b"picture")
        }
        return Encoded(np.asarray(super().encode(payloads)), refused)


SIDE = 8
_PLAN: dict[str, Json] = {"resize": [SIDE, SIDE], "crop": None, "interpolation": "nearest"}


class DecodedPictures:
    """The pixels of a picture, decoded as every image encoder has them decoded and made SIDE × SIDE, in shares of 255."""

    payload = "image"
    dim = SIDE * SIDE * 3

    def __init__(self) -> None:
        self.spec: dict[str, Json] = {"kind": "decoded pictures", "dtype": "float32", "precision": "float32"}

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32] | Encoded:
        pixels = np.zeros((len(payloads), SIDE, SIDE, 3), np.uint8)
        decoder = Decoder(2)
        try:
            reasons = [future.result() for future in decoder.start(payloads, _PLAN, pixels)]
        finally:
            decoder.close()
        vectors = pixels.reshape(len(payloads), self.dim).astype(np.float32) / np.float32(255)
        refused = {row: reason for row, reason in enumerate(reasons) if reason is not None}
        return Encoded(vectors, refused) if refused else vectors
