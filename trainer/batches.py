"""Batches: the inputs and targets of one step, as tensors by feature name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from trainer.live.cells import Cells

Input: TypeAlias = "Tensor | Cells"


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step; every tensor has ``rows`` rows.

    ``inputs``: a vector (rows, dim), a number or truth value (rows, 1), a category index, int64 (rows,), or the cells of an
    input whose encoder runs in the loop.
    ``missing``: 1.0 where the cell is missing, (rows, 1), for the features that had missing cells in training.
    ``targets``: empty when predicting. ``numbers``: which rows of the data these are, where encoders run in the loop.
    """

    rows: int
    inputs: Mapping[str, Input]
    missing: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    numbers: NDArray[np.int64] | None = None


class Batches(Protocol):
    """The rows of a split, in batches."""

    @property
    def targets(self) -> Mapping[str, Tensor]:
        """By output feature, one row per row; empty when predicting."""

    @property
    def rows(self) -> int:
        """How many rows there are."""

    @property
    def device(self) -> torch.device:
        """Where batches are."""

    def to(self, device: torch.device) -> Batches:
        """The same rows on ``device``."""

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Every row once, in an order drawn from ``generator``."""

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, first to last."""

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """What tells these rows from others, by a name of its own; vectors that stay in the store by their keys."""


@dataclass(frozen=True)
class CachedBatches:
    """Every row of a split in contiguous tensors on the device of the model; a step indexes them.

    float16 vectors stay float16 here, half the memory, and become float32 in the batch.
    """

    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    missing: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {len(tensor) for group in (self.inputs, self.targets, self.missing) for tensor in group.values()}
        if len(lengths) > 1:
            raise ValueError(f"the tensors of one split have different lengths: {sorted(lengths)}")

    @classmethod
    def from_arrays(
        cls,
        inputs: Mapping[str, NDArray[Any]],
        targets: Mapping[str, NDArray[Any]],
        missing: Mapping[str, NDArray[Any]],
        rows: NDArray[np.bool_],
    ) -> CachedBatches:
        """The rows marked by ``rows``, in their order. An array that is taken whole is shared, not copied."""
        groups = (inputs, targets, missing)
        return cls(*({name: _tensor(values, rows) for name, values in group.items()} for group in groups))

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.inputs.values())))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.inputs.values())).device

    def to(self, device: torch.device) -> CachedBatches:
        """The same rows on ``device``."""
        groups = (self.inputs, self.targets, self.missing)
        return CachedBatches(*({name: tensor.to(device) for name, tensor in group.items()} for group in groups))

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Every row once, in an order drawn from ``generator``."""
        order = torch.randperm(self.rows, generator=generator).to(self.device)
        for start, stop in bounds(self.rows, batch_size):
            rows = order[start:stop]
            yield Batch(
                stop - start,
                {name: widened(tensor.index_select(0, rows)) for name, tensor in self.inputs.items()},
                {name: tensor.index_select(0, rows) for name, tensor in self.missing.items()},
                {name: tensor.index_select(0, rows) for name, tensor in self.targets.items()},
            )

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, first to last."""
        for start, stop in bounds(self.rows, batch_size):
            yield Batch(
                stop - start,
                {name: widened(tensor[start:stop]) for name, tensor in self.inputs.items()},
                {name: tensor[start:stop] for name, tensor in self.missing.items()},
                {name: tensor[start:stop] for name, tensor in self.targets.items()},
            )

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """What tells these rows from others."""
        return named(inputs=self.inputs, missing=self.missing, targets=self.targets)


def named(**groups: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of groups, under the name of both."""
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            yield f"{group} {name}", tensor


def digest(splits: Mapping[str, Batches]) -> str:
    """Names the rows of all splits: the same for the same values in the same order."""
    found = xxhash.xxh3_128()
    for split, batches in splits.items():
        for name, tensor in batches.parts():
            found.update(f"{split} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(np.ascontiguousarray(tensor.cpu().numpy()).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def bounds(rows: int, batch_size: int) -> list[tuple[int, int]]:
    """The (start, stop) of each batch. A lone last row joins the batch before it: one row has no batch statistics."""
    starts = list(range(0, rows, batch_size))
    if len(starts) > 1 and rows - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], rows], strict=True)) if rows else []


def _tensor(values: NDArray[Any], rows: NDArray[np.bool_]) -> Tensor:
    picked = values if rows.all() and values.flags.writeable else values[rows]
    return torch.from_numpy(np.ascontiguousarray(picked))


def widened(tensor: Tensor) -> Tensor:
    """float32 of float16, which takes half the memory where it is kept."""
    return tensor.float() if tensor.dtype == torch.float16 else tensor
