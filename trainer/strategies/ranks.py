"""This process among those that train together, and what they tell each other.

Light where a process is alone: torch.distributed is used by several only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")
_CPU: Final = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """Process ``rank`` of ``world``, whose messages to others start on ``device``.

    All ranks must call a method that speaks to others, in the same order.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = _CPU

    def share(self, rows: int) -> slice:
        """The rows of a batch that are this rank's: every ``world``th, so that those sorted by length are shared out fairly."""
        return slice(self.rank, rows, self.world)

    def gather(self, local: Tensor, rows: int) -> Tensor:
        """The (rows, dim) of all ranks in the order of the batch, from the share of each.

        Every rank may go on with all of them as if it were alone: the gradient of a rank's share comes back times ``world``, so that
        the mean of the ranks' gradients is that of one process.
        """
        if self.world == 1:
            return local
        if torch.is_grad_enabled() and local.requires_grad:
            gathered: Tensor = _Gather.apply(local, rows, self)  # type: ignore[no-untyped-call]
            return gathered
        return self._gathered(local, rows)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, a new tensor where ``tensor`` is."""
        if self.world == 1:
            return tensor
        import torch.distributed as dist

        total = tensor.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def most(self, number: int) -> int:
        """The greatest of the ranks' numbers."""
        if self.world == 1:
            return number
        import torch.distributed as dist

        found = torch.tensor(number, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found.item())

    def first(self, value: _T) -> _T:
        """What rank 0 has: for what ranks could find each its own, such as a measured time. It is pickled, and passes no GPU."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        box: list[Any] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, device=_CPU)
        found: _T = box[0]
        return found

    def _gathered(self, local: Tensor, rows: int) -> Tensor:
        import torch.distributed as dist

        most = -(-rows // self.world)
        padded = local.detach()
        if len(padded) < most:
            padded = torch.cat([padded, padded.new_zeros(most - len(padded), *padded.shape[1:])])
        every = padded.new_empty(self.world, most, *padded.shape[1:])
        dist.all_gather(list(every.unbind()), padded.contiguous())
        # row i of a share is row i × world + rank of the batch
        return every.transpose(0, 1).flatten(0, 1)[:rows]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, rows: int, ranks: Ranks) -> Tensor:
        ctx.rows, ctx.ranks = rows, ranks
        return ranks._gathered(local, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        mine = gradient[ctx.ranks.share(ctx.rows)]
        return mine * ctx.ranks.world, None, None


ALONE: Final = Ranks()


def others_ended(told: str) -> bool:
    """Whether an error that says this is about a message that was on its way when another rank ended."""
    return "gloo" in told or "NCCL" in told
