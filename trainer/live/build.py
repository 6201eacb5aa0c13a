"""The encoder of an input that runs in the loop: weights loaded, an adapter put on them, and what is not trained frozen."""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path
from typing import Any

import torch

from cachestore.encoders import text_model
from cachestore.encoders.text_settings import TextSettings
from cachestore.errors import ConfigError
from trainer.live.encoder import LiveEncoder
from trainer.live.freezing import freeze
from trainer.live.state import LiveState
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput, TextInput


def live_encoder(feature: EncodedInput, state: LiveState, config: Config, *, weights: bool = True) -> LiveEncoder:
    """The encoder of ``feature`` with its pretrained weights, or those that a run gave it, on the CPU.

    Without ``weights`` it is on the meta device, and no file of weights is read.
    Raises ConfigError where ``feature`` or ``config`` asks for what the model has not, EncoderError as loading does.
    """
    with torch.random.fork_rng(devices=[]):  # the rest of the model is drawn as if this were none of it
        torch.manual_seed((torch.initial_seed() + zlib.crc32(feature.name.encode())) % 2**63)
        return _made(feature, state, config, weights=weights)


def _made(feature: EncodedInput, state: LiveState, config: Config, *, weights: bool) -> LiveEncoder:
    where = f"input_features.{feature.name}.encoder"
    if not isinstance(feature, TextInput):
        raise ConfigError(f"input_features.{feature.name}: an encoder of images cannot be trained yet")
    collate, module = text_model.load(state.spec, Path(state.place), weights=weights)
    mode = feature.tuning.mode
    if config.trainer.enable_gradient_checkpointing and mode != "frozen":
        _checkpoint(module.backbone, where)
    if feature.tuning.adapter is not None:
        from trainer import adapters  # peft: not where no encoder has an adapter

        with contextlib.nullcontext() if weights else torch.device("meta"):
            if state.adapter is None:
                adapters.adapt(module, feature.tuning.adapter, state.kind)
            else:
                adapters.load(module, Path(state.adapter))
    if state.adapter is None:
        freeze(module, feature.tuning, config.trainer.layers_to_freeze_regex, where)
    settings = feature.encoder
    tokens = settings.batch_tokens if isinstance(settings, TextSettings) else None
    return LiveEncoder(module, collate, state.dim, frozen=mode == "frozen", batch_tokens=tokens)


def _checkpoint(backbone: Any, where: str) -> None:
    """Compute the activations of each block again when its gradients are wanted, instead of keeping them."""
    if not backbone.supports_gradient_checkpointing:
        raise ConfigError(
            f"trainer.enable_gradient_checkpointing: models of type {backbone.config.model_type!r}, as of {where}, "
            "cannot compute activations again; set it to false"
        )
    backbone.activation_checkpointing_enable()
