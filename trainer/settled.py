"""The encoder of a run, known by its spec: what it encoded is found without its model, which may have moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from cachestore.encoders import Encoded, template_of
from cachestore.errors import EncoderError
from cachestore.keys import Json, fingerprint
from cachestore.store import Store
from trainer.schema.inputs import EncodedInput


@final
@dataclass(frozen=True)
class SettledEncoder:
    """An Encoder of a text or image feature with a recorded spec. Its model is opened when something is to be encoded, and not before."""

    feature: EncodedInput
    spec: Mapping[str, Json]
    dim: int
    store: Store

    @property
    def prompt_template(self) -> str | None:
        """How a text is rendered from several columns, None where a cell is the text."""
        return template_of(self.feature.encoder)

    def encode(self, payloads: Sequence[bytes]) -> NDArray[np.float32] | Encoded:
        """(len(payloads), dim) vectors. Raises EncoderError when the feature's encoder is no longer the one of the spec."""
        settings = self.feature.encoder
        if "precision" in type(settings).model_fields:
            # auto was settled when the spec was made, and holds whatever this machine would choose
            settings = settings.model_copy(update={"precision": self.spec["precision"]})
        opened = self.store.open_encoder(settings)
        require_same(self.feature, opened.spec, self.spec)
        return opened.encode(payloads)


def require_same(feature: EncodedInput, found: Mapping[str, Json], spec: Mapping[str, Json]) -> None:
    """Raises EncoderError where the encoder of ``feature``, as ``found``, is not the one that a run has the ``spec`` of."""
    if fingerprint(found) != fingerprint(spec):
        changed = [name for name in sorted({*found, *spec}) if found.get(name) != spec.get(name)]
        raise EncoderError(
            f"The encoder of {feature.name!r} is not the one this run was trained with: {', '.join(changed)} changed. "
            "Put the model files back, or train again."
        )
