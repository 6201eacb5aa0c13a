"""Which weights of an encoder in the loop are trained: all of them, those of its last blocks, or none that a pattern names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, cast

from torch import nn

from cachestore.errors import ConfigError
from trainer.schema.tuning import Tuning

# Not a norm of the embeddings, nor that of deberta-v2's relative positions.
_LAST_NORMS: Final = frozenset({"ln_f", "norm", "final_norm", "final_layer_norm", "layernorm", "post_layernorm"})
_POOLERS: Final = frozenset({"pooler", "head"})  # of vision models
# XLNet's vector of masked words, and the attention of Longformer to the tokens that all others see, which are none here.
_WITHOUT_PART: Final = re.compile(r"(^|\.)(mask_emb$|(query|key|value)_global\.)")


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model, first to last: what its outermost lists hold; none of a model that is made otherwise."""
    found: list[nn.Module] = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


def freeze(module: nn.Module, tuning: Tuning, regex: str | None, where: str) -> None:
    """Leave gradients to what ``tuning`` has trained of an encoder module, and to nothing that plays no part in its vectors.

    With an adapter, the base was frozen when it was put on. Weights with ``regex`` in their name are frozen. ``where`` is the place
    of the encoder's settings in messages.
    Raises ConfigError when there are fewer blocks than ``trainable_layers``, or nothing is left to train.
    """
    if tuning.mode == "frozen":
        module.requires_grad_(False)
        return
    head = getattr(module, "head", None)
    if tuning.mode == "adapter" and isinstance(head, nn.Module):
        head.requires_grad_(False)
    _freeze_what_plays_no_part(module)
    if tuning.trainable_layers is not None:
        _only_last(module, tuning.trainable_layers, where)
    for name, parameter in module.named_parameters():
        if regex is not None and re.search(regex, name):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(f"{where}: {_why_nothing(module, regex)}, or leave the encoder frozen.")


def require_names(regex: str, modules: Iterable[nn.Module]) -> None:
    """Raises ConfigError when ``regex`` is in the name of no weight of the encoder modules of a config."""
    names = [name for module in modules for name, _ in module.named_parameters()]
    if names and not any(re.search(regex, name) for name in names):
        raise ConfigError(
            f"trainer.layers_to_freeze_regex: {regex!r} is in the name of no weight of an encoder; they are called "
            f"{', '.join(names[:3])} and so on."
        )


def _why_nothing(module: nn.Module, regex: str | None) -> str:
    if regex is None:
        layer = getattr(module, "layer", None)
        return f"nothing that is trained comes before layer {layer}, which is pooled. Set a higher layer"
    return "layers_to_freeze_regex leaves no weight of it to train. Let it name fewer"


def _freeze_what_plays_no_part(module: nn.Module) -> None:
    # DDP would wait for their gradients, and weight decay would shrink them
    layer = getattr(module, "layer", None)
    for part in () if layer is None else (*blocks(module)[layer:], *_after_blocks(_backbone(module))):
        part.requires_grad_(False)
    for name, parameter in module.named_parameters():
        if _WITHOUT_PART.search(name):
            parameter.requires_grad_(False)


def _only_last(module: nn.Module, count: int, where: str) -> None:
    """Freeze all but the last blocks that there are up to the layer that is pooled, and what comes after them."""
    every = blocks(module)[: getattr(module, "layer", None)]
    if count > len(every):
        raise ConfigError(
            f"{where}.trainable_layers: {count} is more than the {len(every)} blocks that vectors depend on. Set fewer, or "
            "leave it out to train the whole encoder."
        )
    head = getattr(module, "head", None)
    after = [*_after_blocks(_backbone(module)), *([head] if isinstance(head, nn.Module) else [])]
    last = [*every[len(every) - count :], *after]
    kept = {id(parameter) for part in last for parameter in part.parameters()}
    for parameter in module.parameters():
        if id(parameter) not in kept:
            parameter.requires_grad_(False)


def _backbone(module: nn.Module) -> nn.Module:
    return cast("Any", module).backbone  # type: ignore[no-any-return]


def _after_blocks(module: nn.Module) -> list[nn.Module]:
    """The norm and the pooler that a model ends with, which stand beside the list of its blocks or beside what holds that."""
    found: list[nn.Module] = []
    for name, part in module.named_children():
        if isinstance(part, nn.ModuleList):
            continue
        if blocks(part):
            found += _after_blocks(part)
        elif blocks(module) and (name in _POOLERS or (name in _LAST_NORMS and "Norm" in type(part).__name__)):
            found.append(part)
    return found
