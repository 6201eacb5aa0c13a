"""The weights of a run: of each encoder that was trained, files that other libraries read; beside them the rest of the model.

adapters/FEATURE   an adapter, in PEFT's own files
encoders/FEATURE   an encoder as a plain model: trained whole, or with its adapter merged, where it can be
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from cachestore.encoders import exported
from trainer import checkpoint
from trainer.assemble import State
from trainer.live.state import LiveState
from trainer.model import Model
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput
from trainer.schema.tuning import Tuning

if TYPE_CHECKING:
    from trainer.live.encoder import LiveEncoder


def write(
    run: Path,
    config: Config,
    model: Model,
    states: Mapping[str, State],
    weights: Mapping[str, Tensor],
    description: Mapping[str, Any],
) -> None:
    """Write a model. ``weights``: all of them, whole, by their names before a strategy wrapped the model."""
    rest = {name: tensor for name, tensor in weights.items() if model.input_of(name) is None}
    for feature in config.trained:
        adapter = feature.tuning.adapter
        state = cast("LiveState", states[feature.name])
        own = {_inner(name): tensor for name, tensor in weights.items() if model.input_of(name) == feature.name}
        plain = _before_training(feature, state, config)
        if adapter is None:
            plain.load_state_dict(own)
        else:
            from trainer import adapters  # PEFT, which other runs do not need

            folder = exported.adapter_folder(run, feature.name)
            base = getattr(feature.encoder, "pretrained_model_name_or_path", None) or state.place
            adapters.save(cast("LiveEncoder", model.encoder(feature.name)).module, folder, base, own)
            if not adapters.mergeable(adapter):
                continue
            adapters.load(plain, folder)
            adapters.merged(plain)
        _export(feature, state, plain, exported.folder(run, feature.name))
    checkpoint.write_model(run, rest, description)


def _inner(name: str) -> str:
    """The name of a weight in its encoder's module: after encoders.KEY.module."""
    return name.split(".", 3)[3]


def _before_training(feature: EncodedInput, state: LiveState, config: Config) -> nn.Module:
    from trainer.live.build import live_encoder  # transformers, which other runs do not need

    frozen = feature.model_copy(update={"tuning": Tuning()})
    return live_encoder(frozen, state, config).module


def _export(feature: EncodedInput, state: LiveState, module: nn.Module, folder: Path) -> None:
    from trainer.export_encoder import export  # transformers, too

    export(feature, state.spec, Path(state.place), module, folder)
