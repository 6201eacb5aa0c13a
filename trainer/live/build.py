"""The encoder of an input that runs in the loop: weights loaded, an adapter put on them, and what is not trained frozen."""

from __future__ import annotations

import contextlib
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cachestore.encoders import image_files, model_files, text_model
from cachestore.encoders.image_model import OneVector
from cachestore.encoders.text_settings import TextSettings
from cachestore.errors import ConfigError, EncoderError
from trainer.live import pictures
from trainer.live.encoder import LiveEncoder, TextEncoder
from trainer.live.freezing import freeze
from trainer.live.pictures import PictureEncoder
from trainer.live.state import LiveState
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput, ImageInput, TextInput


def live_encoder(feature: EncodedInput, state: LiveState, config: Config, *, weights: bool = True) -> LiveEncoder:
    """The encoder of ``feature`` with its pretrained weights, or those that a run gave it, on the CPU.

    Without ``weights`` it is on the meta device, and no file of weights is read.
    Raises ConfigError where ``feature`` or ``config`` asks for what the model has not, EncoderError as loading does, and
    where the files of a model that stays as it is, but for an adapter, are no longer those of ``state``.
    """
    with torch.random.fork_rng(devices=[]):  # the rest of the model is drawn as if this were none of it
        torch.manual_seed((torch.initial_seed() + zlib.crc32(feature.name.encode())) % 2**63)
        return _made(feature, state, config, weights=weights)


def _made(feature: EncodedInput, state: LiveState, config: Config, *, weights: bool) -> LiveEncoder:
    where = f"input_features.{feature.name}.encoder"
    mode = feature.tuning.mode
    encoder = (
        _text(feature, state, weights=weights)
        if isinstance(feature, TextInput)
        else _image(feature, state, weights=weights)
    )
    if weights and mode != "full":  # a run's own weights are not those of the spec
        _require_same(state)
    encoder.frozen = mode == "frozen"
    module: Any = encoder.module
    if weights:
        _require_finite(module, feature.name, state.place)
    if config.trainer.enable_gradient_checkpointing and mode != "frozen":
        _checkpoint(module.backbone, where)
    if feature.tuning.adapter is not None:
        from trainer import adapters  # peft: not where no encoder has an adapter

        with contextlib.nullcontext() if weights else torch.device("meta"):
            if state.adapter is None:
                adapters.adapt(
                    module,
                    feature.tuning.adapter,
                    feature.type,
                    where=f"{where}.adapter",
                    longest=state.spec.get("max_sequence_length"),  # type: ignore[arg-type]
                    example=partial(pictures.example, module) if isinstance(module, OneVector) else None,
                )
            else:
                adapters.load(module, Path(state.adapter))
    if state.adapter is None:
        if isinstance(module, OneVector) and mode != "frozen":
            pictures.freeze_unused(module)
        freeze(module, feature.tuning, config.trainer.layers_to_freeze_regex, where)
    return encoder


def _text(feature: TextInput, state: LiveState, *, weights: bool) -> LiveEncoder:
    collate, module = text_model.load(state.spec, Path(state.place), weights=weights)
    settings = feature.encoder
    tokens = settings.batch_tokens if isinstance(settings, TextSettings) else None
    return TextEncoder(module, collate, state.dim, batch_tokens=tokens)


def _image(feature: ImageInput, state: LiveState, *, weights: bool) -> LiveEncoder:
    return PictureEncoder(pictures.load(state, weights=weights), state.dim, batch_size=feature.encoder.batch_size)


def _require_same(state: LiveState) -> None:
    if state.kind == "image":
        image_files.require_same(state.spec, Path(state.place))
    else:
        model_files.require_same(state.spec, Path(state.place))
        model_files.require_same_head(state.spec, Path(state.place))


def _require_finite(module: nn.Module, feature: str, place: str) -> None:
    # or the first loss would be NaN, and the learning rate seem too high
    for name, parameter in module.named_parameters():
        if parameter.numel() and not all(bool(value.isfinite()) for value in torch.aminmax(parameter.detach())):
            raise EncoderError(
                f"The encoder of {feature!r}, {place}, has NaN or infinity in its weight {name.removeprefix('backbone.')}. "
                "Restore the files of the model, or name another one."
            )


def _checkpoint(backbone: Any, where: str) -> None:
    """Compute the activations of each block again when its gradients are wanted, instead of keeping them."""
    if not getattr(backbone, "supports_gradient_checkpointing", False):
        model_type = getattr(getattr(backbone, "config", None), "model_type", type(backbone).__name__)
        raise ConfigError(
            f"trainer.enable_gradient_checkpointing: models of type {model_type!r}, as of {where}, "
            "cannot compute activations again; set it to false"
        )
    backbone.activation_checkpointing_enable()
