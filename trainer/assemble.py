"""A config and what its features learnt → the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import nn

from trainer.batches import CachedBatches
from trainer.decoders import DecoderModule, NumberDecoder
from trainer.encoders import input_encoder
from trainer.features import Fitted, FittedCategory, FittedNumber
from trainer.model import Model
from trainer.rows import FittedText
from trainer.schema import Config
from trainer.schema.outputs import BinaryOutput, CategoryOutput, NumberOutput

State: TypeAlias = Fitted | FittedText


def build_model(config: Config, states: Mapping[str, State]) -> Model:
    """The model with fresh weights, drawn from torch's global generator."""
    encoders: dict[str, nn.Module] = {}
    dims: dict[str, int] = {}
    missing = set()
    for feature in config.input_features:
        state = states[feature.name]
        encoders[feature.name], dims[feature.name] = input_encoder(feature, state)
        if isinstance(state, FittedText) and state.missing:
            missing.add(feature.name)
            dims[feature.name] += 1
    combiner = config.combiner.build(dims)
    decoders: dict[str, DecoderModule] = {}
    for output in config.output_features:
        state = states[output.name]
        match output, state:
            case CategoryOutput(), FittedCategory(vocabulary=classes):
                decoders[output.name] = output.decoder.build(
                    combiner.dim, classes, output.loss, top_k=output.top_k, where=f"output_features.{output.name}"
                )
            case BinaryOutput(), _:
                decoders[output.name] = output.decoder.build(combiner.dim, output.loss, output.threshold)
            case NumberOutput(), FittedNumber():
                restore = state.restore if state.normalization is not None else None
                decoders[output.name] = output.decoder.build(combiner.dim, output.loss, restore)
    weights = {output.name: output.loss.weight for output in config.output_features}
    return Model(encoders, missing, combiner, decoders, weights)


def start_at_means(model: Model, train: CachedBatches) -> None:
    """Let every number output begin at the mean of its training targets."""
    for name in model.outputs:
        decoder = model.decoder(name)
        if isinstance(decoder, NumberDecoder):
            decoder.start_at(float(train.targets[name].double().mean().item()))


def default_device() -> torch.device:
    """Where training runs: the first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
