"""A config and what its features learnt → the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import nn

from trainer.batches import Batches
from trainer.decoders import Decoder, NumberDecoder, VectorDecoder
from trainer.encoders import input_encoder
from trainer.features import Fitted, FittedBinary, FittedCategory, FittedNumber, FittedSet, FittedVector
from trainer.live.state import LiveState
from trainer.model import Model
from trainer.schema import Config
from trainer.schema.outputs import BinaryOutput, CategoryOutput, NumberOutput, OutputFeature, SetOutput, VectorOutput
from trainer.stored_inputs import FittedText

State: TypeAlias = Fitted | FittedText | LiveState


def build_model(config: Config, states: Mapping[str, State], *, weights: bool = True) -> Model:
    """The model with fresh weights, drawn from torch's global generator, but for pretrained encoders.

    Without ``weights``, these are on the meta device, and no file of weights is read.
    """
    encoders: dict[str, nn.Module] = {}
    dims: dict[str, int] = {}
    missing = set()
    for feature in config.input_features:
        state = states[feature.name]
        encoders[feature.name], dims[feature.name] = input_encoder(feature, state, config, weights=weights)
        if state.missing:
            missing.add(feature.name)
            dims[feature.name] += 1
    combiner = config.combiner.build(dims)
    decoders = {output.name: _decoder(output, states[output.name], combiner.dim) for output in config.output_features}
    trainer = config.trainer
    field = config.validation_field
    if field in decoders:
        for metric in filter(None, (trainer.validation_metric, trainer.learning_rate_scheduler.plateau_metric)):
            decoders[field].also_measure(metric)
    shares = {output.name: output.loss.weight for output in config.output_features}
    return Model(encoders, missing, combiner, decoders, shares, [feature.name for feature in config.live])


def start_at_means(model: Model, train: Batches) -> None:
    """Let every number and vector output begin at the mean of its training targets."""
    for name in model.outputs:
        decoder = model.decoder(name)
        if isinstance(decoder, NumberDecoder | VectorDecoder):
            decoder.start_at(train.targets[name].double().mean(dim=0))


def default_device() -> torch.device:
    """Where training runs: the first GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _decoder(output: OutputFeature, state: State, dim: int) -> Decoder:
    where = f"output_features.{output.name}"
    match output, state:
        case CategoryOutput(), FittedCategory(vocabulary=classes):
            return output.decoder.build(dim, classes, output.loss, output.top_k, where, calibration=output.calibration)
        case BinaryOutput(), FittedBinary(labels=labels):
            return output.decoder.build(dim, output.loss, output.threshold, labels, calibration=output.calibration)
        case NumberOutput(), FittedNumber():
            restore = state.restore if state.normalization is not None else None
            return output.decoder.build(dim, output.loss, restore, output.clip)
        case SetOutput(), FittedSet(vocabulary=labels):
            return output.decoder.build(
                dim, labels, output.loss, output.threshold, where, calibration=output.calibration
            )
        case VectorOutput(), FittedVector(dim=size):
            return output.decoder.build(dim, size, output.loss)
    raise TypeError(f"the state of {output.name!r} is a {type(state).__name__}, which is no {output.type}'s")
