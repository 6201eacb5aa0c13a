"""How an adapter is made and put on an encoder module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
from torch import nn

from cachestore.encoders.model_files import position_limit
from cachestore.encoders.transformers_model import quiet
from cachestore.errors import ConfigError
from trainer.adapters.adalora import NAME, keep_steps, set_steps
from trainer.adapters.starts import remember
from trainer.adapters.targets import called_layers, targets
from trainer.schema.adapters import IA3, PEFT_NAMES, AdaLoRA, Adapter, Kind, LoRA, PromptTuning


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
    backbone = backbone_of(module)
    module.requires_grad_(False)
    if isinstance(adapter, PromptTuning) and longest is not None:
        _require_room(adapter, backbone, longest, where)
    if isinstance(adapter, LoRA) and adapter.init_lora_weights == "olora" and _transposed(backbone):
        raise ConfigError(
            f"{where}.init_lora_weights: olora is not for the transposed layers (Conv1D) of this model; set pissa"
        )
    called = None if example is None else called_layers(backbone, example)
    settings = _settings(adapter, backbone, called)
    with _said_as_config_error(where, backbone):
        model = wrapped(backbone, PEFT_TYPE_TO_CONFIG_MAPPING[_type(adapter)](**settings))
    if called is not None:
        _require_called(model, called, where)
    module.backbone = model
    remember(adapter, model)
    if isinstance(adapter, AdaLoRA) and adapter.total_step is not None:
        keep_steps(module)
    if steps is not None:
        set_steps(module, steps)


def adapter_of(module: nn.Module) -> peft.PeftModel | None:
    """PEFT's model of an encoder module, None where it has no adapter."""
    backbone = backbone_of(module)
    return backbone if isinstance(backbone, peft.PeftModel) else None


def backbone_of(module: nn.Module) -> nn.Module:
    """What adapters change of an encoder module."""
    return cast("Adaptable", module).backbone


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


def wrapped(backbone: nn.Module, config: Any) -> peft.PeftModel:
    """PEFT's model of a backbone, which it changes in place."""
    make = peft.PeftModelForFeatureExtraction if config.is_prompt_learning else peft.PeftModel
    with warnings.catch_warnings(), quiet():
        # PEFT asks transformers by the old name
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        # names that match no layer
        for message in ("You have passed exclude_modules", r"The following (rank|alpha)_pattern keys"):
            warnings.filterwarnings("error", message)
        model: peft.PeftModel = make(backbone, config, NAME)
    if config.is_prompt_learning:
        # no buffer, so that it would stay on the meta device where the weights come later
        model.prompt_tokens[NAME] = torch.arange(config.num_virtual_tokens, device="cpu")
        model.register_forward_hook(_without_prompt)
    return model


def _without_prompt(model: nn.Module, inputs: object, output: Any) -> Any:
    """The states of a text's own tokens: those of the prompt stand before them, and no pooling is to see them."""
    first = cast("Any", model).peft_config[NAME].num_virtual_tokens
    output.last_hidden_state = output.last_hidden_state[:, first:]
    if getattr(output, "hidden_states", None) is not None:
        output.hidden_states = tuple(states[:, first:] for states in output.hidden_states)
    return output


@contextmanager
def _said_as_config_error(where: str, backbone: nn.Module) -> Iterator[None]:
    """What PEFT finds wrong with settings is the config's fault."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, Warning) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if reason.startswith("Target modules"):
            names = {
                name.rpartition(".")[2]
                for name, module in backbone.named_modules()
                if type(module).__name__ in ("Linear", "Conv1D", "Conv2d")
            }
            reason = (
                f"{reason.partition('. ')[0]}. Its layers are called {', '.join(sorted(names))}: write a list of such names, a pattern "
                "of whole names, or all-linear"
            )
        raise ConfigError(f"{where}: does not fit the model: {reason}") from error
