"""Batches of rows some of whose inputs are cells: the encoder in the loop makes vectors of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.batches import Batch, bounds, named, widened
from trainer.live.cells import Cells

_CPU: Final = torch.device("cpu")
_WINDOW: Final = 50  # batches whose rows are sorted together: enough for little padding, and the order stays random


@final
@dataclass(frozen=True)
class LiveBatches:
    """Rows as CachedBatches has them, beside the cells of every input whose encoder runs in the loop.

    ``numbers``: which rows of the data they are. ``bucketed``: shuffled batches are of rows of about one length.
    """

    cells: Mapping[str, Cells]
    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    missing: Mapping[str, Tensor]
    numbers: NDArray[np.int64]
    bucketed: bool = True
    device: torch.device = _CPU

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.cells.values())))

    def to(self, device: torch.device) -> LiveBatches:
        """The same rows; tensors on ``device``, cells where they are."""
        groups = {
            name: {key: tensor.to(device) for key, tensor in group.items()}
            for name, group in (("inputs", self.inputs), ("targets", self.targets), ("missing", self.missing))
        }
        return replace(self, device=device, **groups)  # type: ignore[arg-type]

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Every row once, in an order drawn from ``generator``."""
        order = torch.randperm(self.rows, generator=generator).numpy()
        ends = bounds(self.rows, batch_size)
        if self.bucketed:
            order = self._by_length(order, batch_size, len(ends), generator)
        for start, stop in ends:
            yield self._batch(order[start:stop])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, first to last."""
        for start, stop in bounds(self.rows, batch_size):
            yield self._batch(np.arange(start, stop))

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """What tells these rows from others."""
        yield from named(inputs=self.inputs, missing=self.missing, targets=self.targets)
        for name, cells in self.cells.items():
            yield from ((f"cells {name} {part}", tensor) for part, tensor in cells.parts())

    def lengths(self) -> NDArray[np.int64]:
        """What a row costs the encoders, (rows,)."""
        total = np.zeros(self.rows, np.int64)
        for cells in self.cells.values():
            total += cells.lengths()
        return total

    def _by_length(
        self, order: NDArray[np.int64], batch_size: int, batches: int, generator: torch.Generator
    ) -> NDArray[np.int64]:
        """The rows of each window in the order of their length; then batches change places, but for the last, which may be short."""
        lengths = self.lengths()
        for start in range(0, len(order), _WINDOW * batch_size):
            window = order[start : start + _WINDOW * batch_size]
            order[start : start + len(window)] = window[np.argsort(lengths[window], kind="stable")]
        full = batches - 1
        moved = torch.randperm(full, generator=generator).numpy()
        head = order[: full * batch_size].reshape(full, batch_size)[moved].reshape(-1)
        return np.concatenate([head, order[full * batch_size :]])

    def _batch(self, rows: NDArray[np.int64]) -> Batch:
        index = torch.from_numpy(rows).to(self.device)
        return Batch(
            len(rows),
            {
                **{name: widened(tensor.index_select(0, index)) for name, tensor in self.inputs.items()},
                **{name: cells.take(rows) for name, cells in self.cells.items()},
            },
            {name: tensor.index_select(0, index) for name, tensor in self.missing.items()},
            {name: tensor.index_select(0, index) for name, tensor in self.targets.items()},
            self.numbers[rows],
        )
