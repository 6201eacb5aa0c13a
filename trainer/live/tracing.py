"""What a step keeps of an encoder for its backward pass, found without weights and without that memory.

The forward pass runs on torch's fake tensors, which have shapes, types and the choice of kernels, and no values; what autograd
saves of it is counted, each storage once and weights not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

from trainer.live.freezing import blocks
from trainer.precision import autocast

_CPU: Final = torch.device("cpu")
_NOT_TRACEABLE: Final = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


@dataclass(frozen=True)
class Kept:
    """Bytes saved for the backward pass: by the ``blocks``, one after another, and by the ``rest``; ``inputs`` of the blocks, together."""

    blocks: tuple[int, ...]
    rest: int
    inputs: int

    def total(self, *, checkpointing: bool) -> int:
        """All of them; with ``checkpointing`` the inputs of the blocks, and one block at a time (Chen et al. 2016, section 4.1)."""
        if checkpointing and self.blocks:
            return self.rest + self.inputs + max(self.blocks)
        return self.rest + sum(self.blocks)


def kept(module: nn.Module, row: Mapping[str, Tensor], rows: int, *, mixed_precision: bool) -> Kept | None:
    """What a forward pass of ``rows`` rows like ``row`` (1, …) keeps, on a CPU; None where it depends on values, so cannot be traced.

    ``module`` is on the meta device; it is of no use afterwards.
    """
    saved: dict[int, tuple[int | None, Any]] = {}  # by storage: the block it was first saved in, and itself
    seen: dict[int, Tensor] = {}  # the inputs of blocks
    current: list[int | None] = [None]
    every = blocks(module)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        module.to_empty(device=_CPU).train()
        for part in module.modules():
            if hasattr(
                part, "module_dropout"
            ):  # loha and lokr, which toss a coin: there is none, so it falls for the layer
                part.training = False
        batch = {name: torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype) for name, tensor in row.items()}
        weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                saved.setdefault(storage._cdata, (current[0], storage))
            return tensor

        def enters(number: int) -> Any:
            def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
                current[0] = number
                states = next(each for each in (*given, *named.values()) if isinstance(each, Tensor))
                seen[number] = states

            return enter

        def leave(*_: object) -> None:
            current[0] = None

        for number, block in enumerate(every):
            block.register_forward_pre_hook(enters(number), with_kwargs=True)
            block.register_forward_hook(leave)
        try:
            with (
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
                autocast(_CPU, mixed_precision),
            ):
                module(**batch)
        except _NOT_TRACEABLE:
            return None
    by_block = [0] * len(every)
    rest = 0
    for place, storage in saved.values():
        if place is None:
            rest += storage.nbytes()
        else:
            by_block[place] += storage.nbytes()
    inputs = sum(states.numel() * states.element_size() for states in seen.values())
    return Kept(tuple(by_block), rest, inputs)
