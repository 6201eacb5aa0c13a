"""Adapters of the encoders that are trained, made, saved and merged by PEFT.

An adapter stands on ``module.backbone``, which becomes PEFT's model; the rest of an encoder module stays as it is.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor, nn

from cachestore import outside
from cachestore.encoders import _torchvision
from cachestore.encoders.model_files import position_limit
from cachestore.encoders.transformers_model import quiet
from cachestore.errors import ConfigError, DamageError, EncoderError
from trainer.adapter_targets import called_layers, targets
from trainer.schema.adapters import IA3, PEFT_NAMES, AdaLoRA, Adapter, Kind, LoRA, PromptTuning

_torchvision.make_importable()

import peft  # noqa: E402  # imports transformers, which needs the line above
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING  # noqa: E402
from peft.tuners.adalora import AdaLoraModel  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402
from peft.utils import (  # noqa: E402
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
_NAME: Final = "default"
_NOT_MERGED: Final = frozenset({"adaption_prompt", "prompt_tuning"})


class Adaptable(Protocol):
    """An encoder module: its ``backbone`` is what adapters change."""

    backbone: nn.Module


def adapt(
    module: nn.Module,
    adapter: Adapter,
    kind: Kind,
    steps: int | None = None,
    *,
    where: str = "adapter",
    longest: int | None = None,
    example: Callable[[], object] | None = None,
) -> None:
    """Put a new adapter, drawn from torch's global generator, on an encoder module; nothing else of it is trained any more.

    ``steps`` are the optimizer steps of the run, by which AdaLoRA cuts its ranks; ``set_steps`` tells them later. ``longest`` is
    the most tokens of a text. ``example`` has the module encode one cell: layers whose forward is never called, as torchvision's
    attention leaves some, are not adapted.
    Raises ConfigError, its message beginning with ``where``, when the adapter does not fit the model.
    """
    backbone = _backbone(module)
    module.requires_grad_(False)
    if isinstance(adapter, PromptTuning) and longest is not None:
        _require_room(adapter, backbone, longest, where)
    if isinstance(adapter, LoRA) and adapter.init_lora_weights == "olora" and _transposed(backbone):
        raise ConfigError(
            f"{where}.init_lora_weights: olora is not for the transposed layers (Conv1D) of this model; set pissa"
        )
    called = None if example is None else called_layers(backbone, example)
    settings = _settings(adapter, backbone, called)
    with _said_as_config_error(where):
        model = _wrapped(backbone, PEFT_TYPE_TO_CONFIG_MAPPING[_type(adapter)](**settings))
    if called is not None:
        _require_called(model, called, where)
    module.backbone = model
    _remember_start(adapter, model)
    if steps is not None:
        set_steps(module, steps)


def set_steps(model: nn.Module, steps: int) -> None:
    """Tell the adapters of ``model`` how many optimizer steps there will be, where their settings leave it to the run.

    Raises ConfigError when AdaLoRA's schedule has no room in them.
    """
    for found in _adalora(model):
        config = found.peft_config[_NAME]
        if config.tinit + config.tfinal >= steps:
            raise ConfigError(
                f"adapter.type: adalora cuts ranks between the first {config.tinit} and the last {config.tfinal} steps, and "
                f"there are {steps}. Set smaller tinit and tfinal, or train longer."
            )
        found.rankallocator.set_total_step(steps)


def after_step(model: nn.Module, step: int) -> None:
    """What adapters do after optimizer step ``step``, counted from 1, while its gradients are still there: AdaLoRA cuts ranks."""
    for found in _adalora(model):
        found.update_and_allocate(step)


def penalty(model: nn.Module) -> Tensor | None:
    """What adapters add to the loss: for AdaLoRA, how far its factors are from orthogonal ones; None where no adapter adds any."""
    total: Tensor | None = None
    for found in _adalora(model):
        parts = []
        for name, factor in found.model.named_parameters():
            if f"lora_A.{_NAME}" in name or f"lora_B.{_NAME}" in name:
                square = factor @ factor.T if "lora_A" in name else factor.T @ factor
                parts.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device)))
        added = torch.stack(parts).mean() * found.peft_config[_NAME].orth_reg_weight
        total = added if total is None else total + added
    return total


def state(model: nn.Module) -> dict[str, Tensor]:
    """What adapters know beside their weights, for a fit that goes on later: AdaLoRA's importances of its ranks."""
    found: dict[str, Tensor] = {}
    for place, each in enumerate(_adalora(model)):
        allocator = each.rankallocator
        for group in _IMPORTANCES:
            found |= {f"{place}.{group}.{name}": tensor for name, tensor in getattr(allocator, group).items()}
        for name, kept in (each.peft_config[_NAME].rank_pattern or {}).items():
            found[f"{place}.rank_pattern.{name}"] = torch.tensor(kept, dtype=torch.uint8)
    return found


def load_state(model: nn.Module, known: Mapping[str, Tensor]) -> None:
    """Take up what ``state`` gave."""
    for place, each in enumerate(_adalora(model)):
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in (*_IMPORTANCES, "rank_pattern")}
        for key, tensor in known.items():
            at, group, name = key.split(".", 2)
            if at == str(place):
                groups[group][name] = tensor
        patterns = {name: tensor.bool().tolist() for name, tensor in groups.pop("rank_pattern").items()}
        each.peft_config[_NAME].rank_pattern = patterns or None
        devices = {name: parameter.device for name, parameter in each.model.named_parameters()}
        for group, tensors in groups.items():
            setattr(each.rankallocator, group, {name: tensor.to(devices[name]) for name, tensor in tensors.items()})


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
    config = model.peft_config[_NAME]
    pattern = getattr(config, "rank_pattern", None)
    if isinstance(config, peft.AdaLoraConfig):
        config.rank_pattern = None  # that of the last step, and these weights may be of another one
    try:
        if config.is_prompt_learning:  # PEFT would compute it, of weights that may be shards
            found = {"prompt_embeddings": tensors[f"prompt_encoder.{_NAME}.embedding.weight"]}
        else:
            found = get_peft_model_state_dict(model, state_dict=tensors, save_embedding_layers=False)
        described = copy.deepcopy(config)
    finally:
        if isinstance(config, peft.AdaLoraConfig):
            config.rank_pattern = pattern
    found = _from_start(model, found, described)
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
        model = _wrapped(_backbone(module), config)
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
    return adapter.type not in _NOT_MERGED


def merged(module: nn.Module) -> nn.Module:
    """The module itself, its backbone plain again and of the same vectors: the adapter is added to the weights, in place.

    Raises EncoderError for an adapter that is no change of weights.
    """
    model = _adapted(module)
    kind = peft.PeftType(model.peft_config[_NAME].peft_type).value.lower()
    if kind in _NOT_MERGED:
        raise EncoderError(
            f"an adapter of type {kind} adds tokens, not weights, so no plain model has its vectors. "
            "Train with another one, such as lora, to export the encoder."
        )
    module.backbone = model.merge_and_unload()
    return module


def adapter_of(module: nn.Module) -> peft.PeftModel | None:
    """PEFT's model of an encoder module, None where it has no adapter."""
    backbone = _backbone(module)
    return backbone if isinstance(backbone, peft.PeftModel) else None


_IMPORTANCES: Final = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def _backbone(module: nn.Module) -> nn.Module:
    return cast("Adaptable", module).backbone


def _adapted(module: nn.Module) -> peft.PeftModel:
    model = adapter_of(module)
    assert model is not None, "the module has no adapter"
    return model


def _adalora(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, AdaLoraModel))


def _type(adapter: Adapter) -> peft.PeftType:
    return peft.PeftType(adapter.type.upper())


def _settings(adapter: Adapter, backbone: nn.Module, called: Collection[str] | None) -> dict[str, Any]:
    """PEFT's settings of an adapter, with the layers of this model that it goes on."""
    theirs = {ours: name for name, ours in PEFT_NAMES.get(adapter.type, {}).items()}
    given = adapter.model_dump(exclude={"type"}, exclude_none=True)
    settings = {theirs.get(name, name): _listed(value) for name, value in given.items()}
    if isinstance(adapter, PromptTuning):
        settings["prompt_tuning_init"] = adapter.prompt_tuning_init.upper()
        settings["task_type"] = peft.TaskType.FEATURE_EXTRACTION
        # of no account, and not told by all configs of models
        settings |= {"num_layers": 1, "num_attention_heads": 1}
        settings["token_dim"] = (
            cast("Any", backbone).get_input_embeddings().embedding_dim
        )  # the hidden size may be another
        if adapter.prompt_tuning_init == "text":
            settings["tokenizer_name_or_path"] = getattr(backbone, "name_or_path", "")
        return settings
    if adapter.type == "adaption_prompt":
        return settings
    known = (
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        if isinstance(adapter, IA3)
        else PEFT_TYPE_TO_TUNER_MAPPING[_type(adapter)].target_module_mapping
    )
    settings |= targets(adapter.type, settings, backbone, known, called)
    if isinstance(adapter, AdaLoRA):
        settings.setdefault("total_step", adapter.tinit + adapter.tfinal + 1)  # until set_steps
    if adapter.type in ("lora", "adalora", "ia3", "vera"):
        settings["fan_in_fan_out"] = _transposed(backbone)
    return settings


def _transposed(backbone: nn.Module) -> bool:
    return any(type(layer).__name__ == "Conv1D" for layer in backbone.modules())


def _require_room(adapter: PromptTuning, backbone: nn.Module, longest: int, where: str) -> None:
    config: Any = backbone.config
    limit = position_limit(config.model_type, config.to_dict())
    if limit is not None and longest + adapter.num_virtual_tokens > limit:
        most = limit - adapter.num_virtual_tokens
        raise ConfigError(
            f"{where}: prompt_tuning puts {adapter.num_virtual_tokens} tokens before texts of up to {longest}, and the model has "
            f"positions for {limit} tokens; set max_sequence_length to {most} or less, or fewer num_virtual_tokens"
        )


def _require_called(model: peft.PeftModel, called: Collection[str], where: str) -> None:
    """Raises ConfigError for an adapted layer of which the model only takes the weights: an adapter there would do nothing."""
    for name, layer in model.get_base_model().named_modules():
        parent = name.rpartition(".")[0]
        whole = isinstance(layer, BaseTunerLayer) and not isinstance(
            model.get_base_model().get_submodule(parent.rpartition(".base_layer")[0]), BaseTunerLayer
        )
        if whole and name not in called:
            raise ConfigError(
                f"{where}.target_modules: {name} cannot be adapted, because the model takes its weights and never calls it. "
                "Name other layers, or leave target_modules out."
            )


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _wrapped(backbone: nn.Module, config: Any) -> peft.PeftModel:
    """PEFT's model of a backbone, which it changes in place."""
    make = peft.PeftModelForFeatureExtraction if config.is_prompt_learning else peft.PeftModel
    with warnings.catch_warnings(), quiet():
        # PEFT asks transformers by the old name
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        # names that match no layer
        for message in ("You have passed exclude_modules", r"The following (rank|alpha)_pattern keys"):
            warnings.filterwarnings("error", message)
        model: peft.PeftModel = make(backbone, config, _NAME)
    if config.is_prompt_learning:
        # no buffer, so that it would stay on the meta device where the weights come later
        model.prompt_tokens[_NAME] = torch.arange(config.num_virtual_tokens, device="cpu")
        model.register_forward_hook(_without_prompt)
    return model


def _without_prompt(model: nn.Module, inputs: object, output: Any) -> Any:
    """The states of a text's own tokens: those of the prompt stand before them, and no pooling is to see them."""
    first = cast("Any", model).peft_config[_NAME].num_virtual_tokens
    output.last_hidden_state = output.last_hidden_state[:, first:]
    if getattr(output, "hidden_states", None) is not None:
        output.hidden_states = tuple(states[:, first:] for states in output.hidden_states)
    return output


@contextmanager
def _said_as_config_error(where: str) -> Iterator[None]:
    """What PEFT finds wrong with settings is the config's fault."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, Warning) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(f"{where}: does not fit the model: {reason}") from error


def _remember_start(adapter: Adapter, model: peft.PeftModel) -> None:
    """Keep the first factors of an adapter that took them out of the model's weights: what it is to others is the difference."""
    init = getattr(adapter, "init_lora_weights", None)
    if not isinstance(init, str) or not init.startswith(("pissa", "olora")):
        return
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and _NAME in layer.lora_A:
            for part in ("lora_A", "lora_B"):
                first = getattr(layer, part)[_NAME].weight.detach().clone()
                layer.register_buffer(f"start_of_{part}", first, persistent=False)


def _from_start(model: peft.PeftModel, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The weights of an adapter on the plain model; ``config`` becomes that of them.

    W' = W - s·B₀A₀ + s·BA, so that on W the adapter is s·[B, -B₀][A; A₀], of twice the rank.
    """
    starts = {
        f"{name}.{part}.weight": layer.get_buffer(f"start_of_{part}")
        for name, layer in model.named_modules()
        for part in ("lora_A", "lora_B")
        if f"start_of_{part}" in layer._buffers
    }
    if not starts:
        return dict(tensors)
    found = dict(tensors)
    for name, first in starts.items():
        here = found[name]
        first = first.to(here.device)  # noqa: PLW2901
        found[name] = torch.cat([here, first]) if "lora_A" in name else torch.cat([here, -first], dim=1)
    factor = 2**0.5 if config.use_rslora else 2
    config.r *= 2
    config.lora_alpha *= factor  # s is alpha / r, or alpha / √r
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: factor * alpha for name, alpha in (config.alpha_pattern or {}).items()}
    config.init_lora_weights = True
    return found
