"""An encoder of pictures without a model, for tests of what stands around one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cachestore.encoders import Encoded
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
