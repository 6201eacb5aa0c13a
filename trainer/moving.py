"""What a fit changes of a model, and how it is divided where processes have rows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn

from trainer.model import Model
from trainer.strategies import Trained
from trainer.strategies.ranks import ALONE, Ranks

Named: TypeAlias = Mapping[str, Tensor]


class Rows(Protocol):
    """A tensor, or what reads rows of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


class Moving:
    """The tensors of ``model`` that a fit changes, by name: its ``trained`` parameters, and the buffers outside of encoders in the loop.

    Of a sharded parameter it is the rows that this process has: as torch.chunk cuts them, along the first dimension.
    """

    def __init__(self, model: Model, trained: Sequence[Trained], ranks: Ranks = ALONE) -> None:
        self._model, self._trained, self._ranks = model, tuple(trained), ranks
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        names = [name for name in model.state_dict() if name not in parameters]
        self._buffers = [name for name in names if model.input_of(name) is None]
        self.sharded: list[nn.Parameter] = [each.parameter for each in trained if each.sharded]
        self._sharded_names = {each.name for each in trained if each.sharded}
        self._sharded = {id(parameter) for parameter in self.sharded}

    def tensors(self) -> dict[str, Tensor]:
        """What changes, shared with the model."""
        found = {each.name: each.parameter.detach() for each in self._trained}
        if self._buffers:
            state = self._model.state_dict()
            found.update({name: state[name] for name in self._buffers})
        return found

    @torch.no_grad()
    def load(self, found: Named) -> None:
        """Take up the values of ``tensors``."""
        for name, tensor in self.tensors().items():
            tensor.copy_(found[name])

    def split(self, named: Named) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of tensors by the names of ``tensors``: those that all processes have, and this one's rows of the others."""
        own = {name: tensor for name, tensor in named.items() if name in self._sharded_names}
        return {name: tensor for name, tensor in named.items() if name not in own}, own

    def split_state(
        self, state: Named, parameters: Sequence[nn.Parameter]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """``split`` for the state of an optimizer of ``parameters``."""
        own = {}
        if self._sharded:
            for name, tensor in state.items():
                parameter = parameters[int(name.rpartition(".")[2])]
                if id(parameter) in self._sharded and tensor.shape == parameter.shape and tensor.dim():
                    own[name] = tensor
        return {name: tensor for name, tensor in state.items() if name not in own}, own

    def joined(self, whole: Named, rows: Mapping[str, Rows]) -> dict[str, Tensor]:
        """The inverse of ``split``, of a state that processes of any number wrote."""
        return {name: self._part(saved, name in self._sharded_names) for name, saved in {**whole, **rows}.items()}

    def joined_state(
        self, whole: Named, rows: Mapping[str, Rows], parameters: Sequence[nn.Parameter]
    ) -> dict[str, Tensor]:
        """The inverse of ``split_state``."""
        found: dict[str, Tensor] = {}
        for name, saved in {**whole, **rows}.items():
            place = name.rpartition(".")[2]
            found[name] = self._part(saved, bool(self._sharded) and id(parameters[int(place)]) in self._sharded)
        return found

    def _part(self, saved: Tensor | Rows, sharded: bool) -> Tensor:
        if isinstance(saved, Tensor) and (not sharded or not saved.dim()):
            return saved
        count = len(saved)
        if not sharded:
            return saved[0:count]
        each = -(-count // self._ranks.world)
        start = min(self._ranks.rank * each, count)
        return saved[start : min(start + each, count)]
