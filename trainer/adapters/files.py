"""Adapters in PEFT's own files, and added to the weights of their model."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor, nn

from cachestore import outside
from cachestore.encoders.exported import NOT_MERGED
from cachestore.encoders.transformers_model import quiet
from cachestore.errors import DamageError, EncoderError
from trainer.adapters.adalora import NAME
from trainer.adapters.making import adapter_of, backbone_of, wrapped
from trainer.adapters.starts import from_start
from trainer.schema.adapters import Adapter

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"


def save(module: nn.Module, folder: Path, base: str, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter of an encoder module as PEFT has it; ``base`` names the model that it is for.

    ``weights``, by the names of ``module.state_dict()``, are taken in place of the module's own: whole ones of a sharded model.
    An adapter that began with a part of the model's own weights (pissa, olora) is written as the LoRA of the model that it is.
    """
    model = _adapted(module)
    tensors = model.state_dict()
    for name, tensor in (weights or {}).items():
        if name.startswith("backbone."):
            tensors[name.removeprefix("backbone.")] = tensor
    config = model.peft_config[NAME]
    pattern = getattr(config, "rank_pattern", None)
    if isinstance(config, peft.AdaLoraConfig):
        config.rank_pattern = None  # that of the last step, and these weights may be of another one
    try:
        if config.is_prompt_learning:  # PEFT would compute it, of weights that may be shards
            found = {"prompt_embeddings": tensors[f"prompt_encoder.{NAME}.embedding.weight"]}
        else:
            found = get_peft_model_state_dict(model, state_dict=tensors, save_embedding_layers=False)
        described = copy.deepcopy(config)
    finally:
        if isinstance(config, peft.AdaLoraConfig):
            config.rank_pattern = pattern
    found = from_start(model, found, described)
    described.base_model_name_or_path = base
    described.inference_mode = True
    values = {
        name: sorted(value) if isinstance(value, set) else value for name, value in sorted(described.to_dict().items())
    }
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(found.items())}
    outside.write(folder / WEIGHTS, tensors_as_bytes(kept, metadata={"format": "pt"}))
    outside.write(folder / CONFIG, (json.dumps(values, indent=2) + "\n").encode())


def load(module: nn.Module, folder: Path) -> None:
    """Put the adapter that ``save`` wrote on an encoder module that has none, to be used and not trained.

    Raises DamageError when its files are not whole, or not an adapter of this model.
    """
    try:
        values = json.loads((folder / CONFIG).read_bytes())
        tensors = read_tensors((folder / WEIGHTS).read_bytes())
        config = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(values["peft_type"])].from_pretrained(str(folder))
        module.requires_grad_(False)
        model = wrapped(backbone_of(module), config)
        differing = tensors.keys() ^ get_peft_model_state_dict(model, save_embedding_layers=False).keys()
        if differing:
            raise ValueError(f"it is of another model: {min(differing)}")
        with quiet():
            set_peft_model_state_dict(model, tensors)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DamageError(
            f"The adapter {folder} cannot be put on the model ({str(error).strip() or error!r}). Restore its files, or train again."
        ) from error
    module.backbone = model
    module.requires_grad_(False)


def mergeable(adapter: Adapter) -> bool:
    """Whether a model with this adapter can be written as a plain one."""
    return adapter.type not in NOT_MERGED


def merged(module: nn.Module) -> nn.Module:
    """The module itself, its backbone plain again and of the same vectors: the adapter is added to the weights, in place.

    Raises EncoderError for an adapter that is no change of weights.
    """
    model = _adapted(module)
    kind = peft.PeftType(model.peft_config[NAME].peft_type).value.lower()
    if kind in NOT_MERGED:
        raise EncoderError(
            f"an adapter of type {kind} adds tokens, not weights, so no plain model has its vectors. "
            "Train with another one, such as lora, to export the encoder."
        )
    module.backbone = model.merge_and_unload()
    return module


def _adapted(module: nn.Module) -> peft.PeftModel:
    model = adapter_of(module)
    assert model is not None, "the module has no adapter"
    return model
