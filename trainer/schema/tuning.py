"""How the encoder of a text or image input takes part in training: written under its ``encoder``, beside its settings."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from trainer.frozen import Frozen
from trainer.schema.adapters import Adapter


class Tuning(Frozen):
    """``trainable``: whether the encoder's weights are trained. ``trainable_layers``: of its blocks only so many, the last ones.

    With an ``adapter`` its weights alone are trained, whether ``trainable`` is true, as in Ludwig, or not written.
    """

    trainable: bool | None = None
    adapter: Adapter | None = None
    trainable_layers: PositiveInt | None = None

    @property
    def mode(self) -> Literal["frozen", "full", "adapter"]:
        """What of the encoder is trained: nothing, its weights, or an adapter on them."""
        if self.adapter is not None:
            return "adapter"
        return "full" if self.trainable or self.trainable_layers is not None else "frozen"

    @model_validator(mode="after")
    def _one_mode(self) -> Tuning:
        if self.adapter is not None and self.trainable is False:
            why = (
                "trainable: false keeps the adapter from being trained, and an untrained one changes nothing; "
                "leave trainable out (the encoder's own weights are frozen beside an adapter), or the adapter"
            )
        elif self.adapter is not None and self.trainable_layers is not None:
            why = (
                "trainable_layers is for encoders that are trained without an adapter; leave it out, "
                "or choose the adapter's layers with layers_to_transform"
            )
        elif self.trainable is False and self.trainable_layers is not None:
            why = "trainable: false leaves no layers to train; leave it or trainable_layers out"
        else:
            return self
        raise PydanticCustomError("tuning", why)
