"""AdaLoRA: when its ranks are cut, what it adds to the loss, and what it knows beside its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn

from cachestore.errors import ConfigError

NAME: Final = "default"
"""What PEFT calls the one adapter of a model."""
_SETTLED: Final = "steps_are_settled"
_IMPORTANCES: Final = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def set_steps(model: nn.Module, steps: int) -> None:
    """Tell the adapters of ``model`` how many optimizer steps there will be, where their settings leave it to the run.

    Raises ConfigError when AdaLoRA's schedule has no room in them.
    """
    for found in _adalora(model):
        if getattr(found, _SETTLED, False):
            continue
        config = found.peft_config[NAME]
        if config.tinit + config.tfinal >= steps:
            raise ConfigError(
                f"adapter.type: adalora cuts ranks between the first {config.tinit} and the last {config.tfinal} steps, and "
                f"there are {steps}. Set smaller tinit and tfinal, or train longer."
            )
        found.rankallocator.set_total_step(steps)


def keep_steps(model: nn.Module) -> None:
    """Have ``set_steps`` leave the adapters of ``model`` the steps that their settings name."""
    for found in _adalora(model):
        setattr(found, _SETTLED, True)


def after_step(model: nn.Module, step: int) -> None:
    """What adapters do after optimizer step ``step``, counted from 1, while its gradients are still there: AdaLoRA cuts ranks."""
    for found in _adalora(model):
        # those that are frozen, or play no part in the vectors: PEFT takes importances of all, and theirs is none
        without = [each for name, each in found.named_parameters() if "lora_" in name and each.grad is None]
        for parameter in without:
            parameter.grad = torch.zeros_like(parameter)
        found.update_and_allocate(step)
        for parameter in without:
            parameter.grad = None


def penalty(model: nn.Module) -> Tensor | None:
    """What adapters add to the loss: for AdaLoRA, how far its factors are from orthogonal ones; None where no adapter adds any."""
    total: Tensor | None = None
    for found in _adalora(model):
        parts = []
        for name, factor in found.model.named_parameters():
            if f"lora_A.{NAME}" in name or f"lora_B.{NAME}" in name:
                square = factor @ factor.T if "lora_A" in name else factor.T @ factor
                parts.append(torch.linalg.matrix_norm(square - torch.eye(len(square), device=square.device)))
        added = torch.stack(parts).mean() * found.peft_config[NAME].orth_reg_weight
        total = added if total is None else total + added
    return total


def state(model: nn.Module) -> dict[str, Tensor]:
    """What adapters know beside their weights, for a fit that goes on later: AdaLoRA's importances of its ranks."""
    found: dict[str, Tensor] = {}
    for place, each in enumerate(_adalora(model)):
        allocator = each.rankallocator
        for group in _IMPORTANCES:
            found |= {f"{place}.{group}.{name}": tensor for name, tensor in getattr(allocator, group).items()}
        for name, kept in (each.peft_config[NAME].rank_pattern or {}).items():
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
        each.peft_config[NAME].rank_pattern = patterns or None
        devices = {name: parameter.device for name, parameter in each.model.named_parameters()}
        for group, tensors in groups.items():
            setattr(each.rankallocator, group, {name: tensor.to(devices[name]) for name, tensor in tensors.items()})


def _adalora(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, AdaLoraModel))
