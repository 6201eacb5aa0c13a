"""Fully sharded data parallel training (torch's FSDP2): every rank keeps a part of each weight of the live encoders, of its gradient
and of its optimizer state, and a block's weights are whole only while the block runs. The small rest of the model is on every rank.
"""

from __future__ import annotations

import math
from typing import Any, Final, cast, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from cachestore.errors import ConfigError
from trainer.live.encoder import LiveEncoder
from trainer.live.freezing import blocks
from trainer.model import Model
from trainer.strategies import Trained, trained_of
from trainer.strategies.ddp import Means, as_on_first
from trainer.strategies.ranks import Ranks

_CPU: Final = torch.device("cpu")


@final
class Fsdp:
    """The live encoders in shards.

    ``half``: in which type weights travel and gradients are made, None for their own, which those of a model with batch norm keep;
    gradients are summed in float32. ``offload``: shards, their gradients and their optimizer state stay in the memory of the CPU.
    Rank 0 alone needs to load weights: others may come to ``wrap`` with encoders on the meta device.
    """

    def __init__(self, ranks: Ranks, *, half: torch.dtype | None = None, offload: bool = False) -> None:
        self.ranks = ranks
        self.device = ranks.device
        self.loads = ranks.rank == 0
        self._mesh: DeviceMesh = init_device_mesh(ranks.device.type, (ranks.world,))
        # the loop's autocast says what is computed in which type
        self._precision = MixedPrecisionPolicy(half, torch.float32 if half else None, cast_forward_inputs=False)
        self._offload = CPUOffloadPolicy() if offload and ranks.device.type == "cuda" else OffloadPolicy()
        self._shards: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._trained: list[Trained] = []
        self._whole: Means | None = None

    def wrap(self, model: Model) -> None:
        """Shard the live encoders as rank 0 has them, and bring the rest of the model to the device."""
        sharded = set()
        for name in sorted(model.live):
            encoder = model.encoder(name)
            assert isinstance(encoder, LiveEncoder)
            encoder.ranks, encoder.device = self.ranks, self.device
            self._shard(encoder.module)
            sharded |= {id(parameter) for parameter in encoder.parameters()}
        live = {id(model.encoder(name)) for name in model.live}
        for part in (*model.encoders.children(), model.combiner, model.decoders):
            if id(part) not in live:
                part.to(self.device)
        whole = [parameter for parameter in model.parameters() if id(parameter) not in sharded]
        as_on_first(whole, self.ranks)
        self._whole = Means([parameter for parameter in whole if parameter.requires_grad], self.ranks.world)

    def trained(self, model: Model) -> list[Trained]:
        """Every parameter that is trained; of a sharded one a plain parameter that has this rank's part of its memory."""
        if not self._trained:  # now, for after a forward pass a module may hold whole weights for a while
            for trained in trained_of(model):
                parameter = trained.parameter
                if isinstance(parameter, DTensor):
                    shard = nn.Parameter(cast("DTensor", parameter.detach()).to_local())
                    self._shards.append((parameter, shard))
                    trained = Trained(trained.name, shard, trained.encoder, sharded=True)  # noqa: PLW2901
                self._trained.append(trained)
        return list(self._trained)

    def sync(self, on: bool) -> None:
        """Gradients of shards are summed after every backward pass: to keep whole ones until the last would take their memory."""
        assert self._whole is not None
        self._whole.on = on

    def settle(self) -> None:
        """Give the parameters of ``trained`` their gradients, those of all ranks."""
        assert self._whole is not None
        for parameter, shard in self._shards:
            gradient = parameter.grad
            shard.grad = gradient.to_local() if isinstance(gradient, DTensor) else None
            parameter.grad = None
        self._whole.settle()

    def whole(self, model: Model) -> dict[str, Tensor]:
        """The state of the model, on rank 0."""
        found = {}
        for name, tensor in model.state_dict().items():
            whole = self._gathered(tensor) if isinstance(tensor, DTensor) else tensor.detach().cpu()
            if self.ranks.rank == 0:
                found[name] = whole
        return found

    def _shard(self, module: nn.Module) -> None:
        """One block after the other, so that ranks other than 0 never have more whole weights than one block's."""
        averaging = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
        policy: dict[str, Any] = {
            # weights of batch norm must be of the type of its statistics
            "mp_policy": MixedPrecisionPolicy(cast_forward_inputs=False) if averaging else self._precision,
            "offload_policy": self._offload,
        }
        for owner in module.modules():
            for name, buffer in owner.named_buffers(recurse=False):
                owner._buffers[name] = self._received(buffer)
        for unit in (*blocks(module), module):
            if isinstance(unit, nn.ModuleList | nn.ModuleDict):  # never called, so it cannot gather what its parts need
                continue
            places = _places(unit)
            received = [self._scattered(parameter) for parameter, _ in places]
            for parameter, owners in places:
                if parameter.is_meta:
                    _put(owners, nn.Parameter(torch.empty_like(parameter, device=_CPU), parameter.requires_grad))
            fully_shard(unit, mesh=self._mesh, reshard_after_forward=True, **policy)
            with torch.no_grad():
                for part, (_, owners) in zip(received, places, strict=True):
                    local = cast("DTensor", _at(owners)).to_local()
                    local.copy_(part[: len(local)])

    def _scattered(self, parameter: nn.Parameter) -> Tensor:
        """This rank's rows of a parameter that rank 0 has, and some more where rows are too few for all."""
        world = self.ranks.world
        if not parameter.dim():
            raise ConfigError(
                "trainer.strategy: fsdp cannot shard this encoder, which has a weight without dimensions. Set ddp"
            )
        rows = math.ceil(len(parameter) / world)
        part = torch.empty(rows, *parameter.shape[1:], dtype=parameter.dtype)
        parts = None
        if self.ranks.rank == 0:
            whole = parameter.detach().to(_CPU)
            parts = [whole[rank * rows : (rank + 1) * rows].contiguous() for rank in range(world)]
            parts = [torch.cat([each, each.new_zeros(rows - len(each), *each.shape[1:])]) for each in parts]
        dist.scatter(part, parts)
        return part

    def _gathered(self, tensor: DTensor) -> Tensor:
        """A whole parameter on rank 0, this rank's rows on others."""
        local = tensor.to_local().detach().to(_CPU)
        most = math.ceil(len(tensor) / self.ranks.world)
        padded = torch.cat([local, local.new_zeros(most - len(local), *local.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.ranks.world)] if self.ranks.rank == 0 else None
        dist.gather(padded, parts)
        return local if parts is None else torch.cat(parts)[: len(tensor)]

    def _received(self, buffer: Tensor) -> Tensor:
        found = torch.empty_like(buffer, device=_CPU) if buffer.is_meta else buffer.detach().to(_CPU).contiguous()
        dist.broadcast(found, src=0)
        return found


def _places(unit: nn.Module) -> list[tuple[nn.Parameter, list[tuple[nn.Module, str]]]]:
    """The parameters of a unit that no unit in it has, each with the modules it is registered at and its name there."""
    found: dict[int, tuple[nn.Parameter, list[tuple[nn.Module, str]]]] = {}
    for owner in unit.modules():
        for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
            if not isinstance(parameter, DTensor):
                found.setdefault(id(parameter), (parameter, []))[1].append((owner, name))
    return list(found.values())


def _at(owners: list[tuple[nn.Module, str]]) -> nn.Parameter | None:
    owner, name = owners[0]
    return owner._parameters[name]


def _put(owners: list[tuple[nn.Module, str]], parameter: nn.Parameter) -> None:
    for owner, name in owners:
        owner._parameters[name] = parameter
