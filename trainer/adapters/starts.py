"""Adapters that begin with a part of the model's own weights (pissa, olora): told to others as the LoRA of the model as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from trainer.adapters.adalora import NAME
from trainer.schema.adapters import Adapter


def remember(adapter: Adapter, model: PeftModel) -> None:
    """Keep the first factors of an adapter that took them out of the model's weights: what it is to others is the difference."""
    init = getattr(adapter, "init_lora_weights", None)
    if not isinstance(init, str) or not init.startswith(("pissa", "olora")):
        return
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and NAME in layer.lora_A:
            for part in ("lora_A", "lora_B"):
                first = getattr(layer, part)[NAME].weight.detach().clone()
                layer.register_buffer(f"start_of_{part}", first, persistent=False)


def from_start(model: PeftModel, tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
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
