"""Which layers of a model an adapter goes on, where neither its settings nor PEFT say so."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from torch import nn

# What families call the projections of attention: queries and values, which the authors of LoRA adapt; keys and values for IA3.
_QUERIES: Final[Sequence[tuple[str, ...]]] = (
    ("query", "value"),
    ("q_proj", "v_proj"),
    ("q_lin", "v_lin"),
    ("query_proj", "value_proj"),
    ("q", "v"),
    ("Wqkv",),
    ("query_key_value",),
    ("qkv_proj",),
    ("qkv",),
    ("c_attn",),
)
_KEYS: Final[Sequence[tuple[str, ...]]] = (
    ("key", "value"),
    ("k_proj", "v_proj"),
    ("k_lin", "v_lin"),
    ("key_proj", "value_proj"),
    ("k", "v"),
    *_QUERIES[5:],
)
_LINEAR: Final = frozenset({"Linear", "Conv1D"})
_WITHOUT_CONV1D: Final = frozenset({"loha", "lokr", "oft"})
_LINEAR_ALONE: Final = frozenset({"vera"})


def targets(
    adapter: str,
    settings: Mapping[str, Any],
    backbone: nn.Module,
    known: Collection[str],
    called: Collection[str] | None,
) -> dict[str, Any]:
    """What PEFT is to be told of ``target_modules`` (and IA3's ``feedforward_modules``) beside ``settings``.

    ``known``: the types of models of which it knows them itself. Else these are projections of attention, or all linear layers, or
    all convolutions that are not grouped. ``called``: the layers whose forward is called, None where all are.
    """
    found: dict[str, Any] = {}
    given = settings.get("target_modules")
    its_own = getattr(getattr(backbone, "config", None), "model_type", None) in known
    if given is None and not its_own:
        found["target_modules"] = _attention(adapter, backbone, called) or _every(adapter, backbone, called)
    elif given == "all-linear" and called is not None:
        found["target_modules"] = _exactly(_linear(adapter, backbone, called))
    if adapter == "ia3" and "feedforward_modules" not in settings and not its_own:
        found["feedforward_modules"] = []
    return found


def called_layers(backbone: nn.Module, example: Callable[[], object]) -> set[str]:
    """The names of all modules whose forward ``example`` calls; others only lend their weights to functions."""
    called: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        return lambda *_: called.add(name)

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in backbone.named_modules()]
    try:
        example()
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _attention(adapter: str, backbone: nn.Module, called: Collection[str] | None) -> list[str] | str:
    layers = _linear(adapter, backbone, called)
    for names in _KEYS if adapter == "ia3" else _QUERIES:
        ends = {name: [layer for layer in layers if layer.rpartition(".")[2] == name] for name in names}
        if all(ends.values()):
            return list(names) if called is None else _exactly([layer for some in ends.values() for layer in some])
    return []


def _every(adapter: str, backbone: nn.Module, called: Collection[str] | None) -> str:
    layers = _linear(adapter, backbone, called)
    if not layers and adapter not in _LINEAR_ALONE:
        layers = [
            name
            for name, layer in backbone.named_modules()
            if type(layer) is nn.Conv2d and layer.groups == 1 and (called is None or name in called)
        ]
    return _exactly(layers)


def _linear(adapter: str, backbone: nn.Module, called: Collection[str] | None) -> list[str]:
    kinds = _LINEAR - {"Conv1D"} if adapter in _WITHOUT_CONV1D else _LINEAR
    return [
        name
        for name, layer in backbone.named_modules()
        if type(layer).__name__ in kinds and (called is None or name in called)
    ]


def _exactly(names: Sequence[str]) -> str:
    # PEFT takes a list for the ends of names
    return "|".join(map(re.escape, names))
