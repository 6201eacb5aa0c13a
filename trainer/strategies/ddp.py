"""Data parallel training: every rank has the whole model, and the gradients of all ranks are averaged while they are made.

torch's DistributedDataParallel does the same, but wants every parameter in every backward pass: here a batch may leave an
encoder out, none of its cells being there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.live.encoder import LiveEncoder
from trainer.model import Model
from trainer.strategies import Trained, trained_of, whole_of
from trainer.strategies.ranks import Ranks

_BUCKET: Final = 25 << 20  # bytes that travel together: enough to use the wire, few enough to start early


@final
class Ddp:
    """Every rank a copy of the model."""

    loads = True

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.device = ranks.device
        self._means: Means | None = None

    def wrap(self, model: Model) -> None:
        """Bring the model to the device; what is trained begins everywhere as on rank 0."""
        model.to(self.device)
        for name in model.live:
            encoder = model.encoder(name)
            assert isinstance(encoder, LiveEncoder)
            encoder.ranks, encoder.device = self.ranks, self.device
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        as_on_first([*trained, *model.buffers()], self.ranks)
        self._means = Means(trained, self.ranks.world)

    def trained(self, model: Model) -> list[Trained]:
        """Every parameter that is trained."""
        return trained_of(model)

    def sync(self, on: bool) -> None:
        """Whether gradients are averaged as they are made."""
        assert self._means is not None
        self._means.on = on

    def settle(self) -> None:
        """Wait until all gradients are averages."""
        assert self._means is not None
        self._means.settle()

    def whole(self, model: Model) -> dict[str, Tensor]:
        """The state of the model, on rank 0."""
        return whole_of(model) if self.ranks.rank == 0 else {}


class Means:
    """The gradients of some parameters, averaged over ranks bucket by bucket as the backward pass makes them.

    A gradient that only some ranks made, as where chance leaves out a layer, is 0 on the others. While ``on`` is false gradients are
    left as they are; it must be true in no more than one backward pass before ``settle``.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: int) -> None:
        self.on = True
        self._world = world
        # backward passes go from the last to the first
        self._buckets = list(_buckets(list(reversed(parameters))))
        self._flying: list[tuple[Any, Tensor, list[nn.Parameter]]] = []
        self._begin()
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(self._hook(number))  # type: ignore[no-untyped-call]

    def settle(self) -> None:
        """Average what is not yet."""
        for number in range(self._next, len(self._buckets)):
            self._launch(number)
        for request, flat, bucket in self._flying:
            request.wait()
            missing = [place for place, each in enumerate(bucket) if each.grad is None]
            made = flat[-len(bucket) :].tolist() if missing else []
            for place in missing:
                if made[place]:
                    bucket[place].grad = torch.empty_like(bucket[place])
            flat.div_(self._world)
            parts = torch.split(flat, [*(each.numel() for each in bucket), len(bucket)])
            found = [(each.grad, part) for each, part in zip(bucket, parts, strict=False) if each.grad is not None]
            if found:
                torch._foreach_copy_([own for own, _ in found], [part.view_as(own) for own, part in found])
        self._begin()

    def _begin(self) -> None:
        self._flying.clear()
        self._waiting = [len(bucket) for bucket in self._buckets]
        self._next = 0

    def _hook(self, number: int) -> Any:
        def made(_: Tensor) -> None:
            if not self.on:
                return
            self._waiting[number] -= 1
            if number < self._next:
                raise RuntimeError("a second backward pass began before settle")
            # in the order of buckets on every rank, whatever order gradients come in
            while self._next < len(self._buckets) and self._waiting[self._next] == 0:
                self._launch(self._next)
                self._next += 1

        return made

    def _launch(self, number: int) -> None:
        bucket = self._buckets[number]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        # and which of them this rank has made: all ranks send as much, whatever they made
        made = gradients[0].new_tensor([float(each.grad is not None) for each in bucket])
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), made])
        self._flying.append((dist.all_reduce(flat, async_op=True), flat, bucket))


def as_on_first(tensors: Iterable[Tensor], ranks: Ranks) -> None:
    """Give tensors that all ranks have the values of rank 0."""
    with torch.no_grad():
        for tensor in tensors:
            sent = tensor.detach().contiguous()
            dist.broadcast(sent, src=0)
            if sent.data_ptr() != tensor.data_ptr():
                tensor.copy_(sent)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
    """Neighbours of one dtype and device, a bucketful each."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size >= _BUCKET or (parameter.dtype, parameter.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
