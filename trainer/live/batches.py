"""Batches of rows some of whose inputs are cells: the encoder in the loop makes vectors of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.batches import Batch, CachedBatches, bounds, named, widened
from trainer.live.cells import Cells
from trainer.streaming import StoredVectors, StreamedBatches

_CPU: Final = torch.device("cpu")
_PLACES: Final = ""  # no feature has this name
_LONGEST: Final = 8
_WINDOW: Final = 50  # batches whose rows are sorted together: enough for little padding, and the order stays random


@final
@dataclass(frozen=True)
class LiveBatches:
    """Rows as CachedBatches has them, beside the cells of every input whose encoder runs in the loop.

    ``numbers``: which rows of the data they are. ``bucketed``: shuffled batches are of rows of about one length, but where vectors
    are ``streamed`` from the store, whose order is then that of StreamedBatches.
    """

    cells: Mapping[str, Cells]
    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    missing: Mapping[str, Tensor]
    numbers: NDArray[np.int64]
    bucketed: bool = True
    device: torch.device = _CPU
    streamed: Mapping[str, StoredVectors] = field(default_factory=dict)

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

    def with_vectors(self, vectors: Mapping[str, Tensor]) -> CachedBatches | StreamedBatches:
        """The same rows with ``vectors`` (rows, dim), by input, in place of all cells."""
        inputs = {**self.inputs, **vectors}
        if self.streamed:
            return StreamedBatches(self.streamed, inputs, self.targets, self.missing, self.device)
        return CachedBatches(inputs, self.targets, self.missing)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Every row once, in an order drawn from ``generator``."""
        if self.streamed:
            yield from map(self._with_cells, self._rest().shuffled(batch_size, generator))
            return
        order = torch.randperm(self.rows, generator=generator).numpy()
        ends = bounds(self.rows, batch_size)
        if self.bucketed:
            order = self._by_length(order, batch_size, len(ends), generator)
        for start, stop in ends:
            yield self._batch(order[start:stop])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, first to last."""
        if self.streamed:
            yield from map(self._with_cells, self._rest().in_order(batch_size))
            return
        for start, stop in bounds(self.rows, batch_size):
            yield self._batch(np.arange(start, stop))

    def longest(self, rows: int) -> Batch:
        """So many rows, which are its few longest again and again: a batch as dear as one of that size can be.

        Where vectors are streamed it is the first rows.
        """
        if self.streamed:
            return next(self.in_order(rows))
        return self._batch(np.resize(np.argsort(-self.lengths(), kind="stable")[:_LONGEST], rows))

    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """What tells these rows from others."""
        if self.streamed:
            yield from StreamedBatches(self.streamed, self.inputs, self.targets, self.missing).parts()
        else:
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
        """The rows of each window in the order of their length; then batches change places, but for the last, whose size is its own."""
        lengths, full = self.lengths(), (batches - 1) * batch_size
        head = order[:full].copy()
        for start in range(0, full, _WINDOW * batch_size):
            window = head[start : start + _WINDOW * batch_size]
            head[start : start + len(window)] = window[np.argsort(lengths[window], kind="stable")]
        moved = torch.randperm(batches - 1, generator=generator).numpy()
        return np.concatenate([head.reshape(batches - 1, batch_size)[moved].reshape(-1), order[full:]])

    def _rest(self) -> StreamedBatches:
        """All but the cells, with the place of each row."""
        missing = {**self.missing, _PLACES: torch.arange(self.rows, device=self.device)}
        return StreamedBatches(self.streamed, self.inputs, self.targets, missing, self.device)

    def _with_cells(self, batch: Batch) -> Batch:
        rows = batch.missing[_PLACES].cpu().numpy()
        return Batch(
            batch.rows,
            {**batch.inputs, **{name: cells.take(rows) for name, cells in self.cells.items()}},
            {name: tensor for name, tensor in batch.missing.items() if name != _PLACES},
            batch.targets,
            self.numbers[rows],
        )

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
