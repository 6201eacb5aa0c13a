"""What a config is made of: one frozen class per section, with Ludwig's names, meanings and defaults.

Combiners, decoders and encoders have their settings beside their modules. ``trainer.config`` reads YAML into these.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt, PrivateAttr

from trainer.combiners import Combiner, ConcatCombiner
from trainer.frozen import Frozen
from trainer.schema.backend import Backend, LocalBackend
from trainer.schema.inputs import EncodedInput, InputFeature
from trainer.schema.outputs import OutputFeature
from trainer.schema.preparation import Preprocessing
from trainer.schema.training import TrainerConfig


class Config(Frozen):
    """A whole experiment. Made by ``trainer.config.load_config``, which also checks what no single section can know."""

    input_features: tuple[InputFeature, ...] = Field(min_length=1)
    output_features: tuple[OutputFeature, ...] = Field(min_length=1)
    combiner: Combiner = ConcatCombiner()
    trainer: TrainerConfig = TrainerConfig()
    preprocessing: Preprocessing = Preprocessing()
    backend: Backend = LocalBackend()
    random_seed: NonNegativeInt = 42
    _notices: tuple[str, ...] = PrivateAttr(default=())

    @property
    def notices(self) -> tuple[str, ...]:
        """What its reader is to be told: where something else is done than what was written."""
        return self._notices

    @property
    def trained(self) -> tuple[EncodedInput, ...]:
        """Inputs whose encoder is trained, or an adapter on it."""
        return tuple(each for each in self.live if each.tuning.mode != "frozen")

    @property
    def cached(self) -> tuple[EncodedInput, ...]:
        """Inputs whose vectors come from the store."""
        return tuple(each for each in self.input_features if isinstance(each, EncodedInput) and not each.live)

    @property
    def live(self) -> tuple[EncodedInput, ...]:
        """Inputs whose encoder runs in the loop."""
        return tuple(each for each in self.input_features if isinstance(each, EncodedInput) and each.live)

    @property
    def validation_field(self) -> str:
        """The output, or ``combined``, by whose metric on the validation rows the best epoch is chosen."""
        return self.trainer.validation_field or self.output_features[0].name

    def with_notices(self, notices: tuple[str, ...]) -> Config:
        """The same config, which tells these."""
        told = self.model_copy()
        told._notices = notices
        return told

    def resolved(self) -> dict[str, Any]:
        """Plain mappings and lists, every default written out; ``load_config`` reads them back to an equal config."""
        return self.model_dump(mode="json")
