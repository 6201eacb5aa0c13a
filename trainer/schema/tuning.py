"""How the encoder of a text or image input takes part in training: written under its ``encoder``, beside its settings."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from trainer.frozen import Frozen


class Tuning(Frozen):
    """``trainable``: whether the encoder's weights are trained. ``trainable_layers``: of its blocks only so many, the last ones."""

    trainable: bool | None = None
    trainable_layers: PositiveInt | None = None

    @property
    def mode(self) -> Literal["frozen", "full", "adapter"]:
        """What of the encoder is trained: nothing, its weights, or an adapter on them."""
        return "full" if self.trainable else "frozen"
