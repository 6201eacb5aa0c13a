"""The encoder of an input that runs in the loop: weights loaded, and what is not trained frozen."""

from __future__ import annotations

from pathlib import Path

from cachestore.encoders import text_model
from cachestore.errors import ConfigError
from trainer.live.encoder import LiveEncoder
from trainer.live.state import LiveState
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput, TextInput


def live_encoder(feature: EncodedInput, state: LiveState, config: Config) -> LiveEncoder:
    """The encoder of ``feature`` with its pretrained weights, on the CPU."""
    if not isinstance(feature, TextInput):
        raise ConfigError(f"input_features.{feature.name}: an encoder of images cannot be trained yet")
    collate, module = text_model.load(state.spec, Path(state.place))
    module.requires_grad_(feature.tuning.mode == "full")
    return LiveEncoder(module, collate, state.dim)
