"""Data → tensors: the cells of a dataset, its vectors beside them, and which rows can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore.dataset import Dataset
from cachestore.encoders import template_of
from cachestore.errors import DataError
from cachestore.manifest import FORGOTTEN, MISSING, SKIPPED
from cachestore.sources import fields
from trainer import features
from trainer.batches import CachedBatches
from trainer.features import Fitted
from trainer.features.read import Table, read_columns
from trainer.live.batches import LiveBatches
from trainer.live.cells import Cells
from trainer.live.columns import LiveColumn
from trainer.live.state import LiveState
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput
from trainer.stored_inputs import FittedText, Vectors, without_gaps
from trainer.streaming import StoredVectors, StreamedBatches


@dataclass(frozen=True)
class Columns:
    """Every row of a dataset as arrays by feature name, and ``drop``: why a row cannot be used, "" where it can."""

    inputs: Mapping[str, NDArray[Any] | StoredVectors]
    targets: Mapping[str, NDArray[Any]]
    drop: NDArray[np.object_]
    missing: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    cells: Mapping[str, Cells] = field(default_factory=dict)
    bucketed: bool = True
    numbers: NDArray[np.int64] | None = None
    """of rows that were taken, which they are of the dataset"""

    def select(self, rows: NDArray[np.bool_]) -> CachedBatches | StreamedBatches | LiveBatches:
        """The rows marked by ``rows`` that can be used, in dataset order; contiguous tensors, but for what stays in the store."""
        return self._batches(rows & (self.drop == ""))

    def take(self, places: NDArray[np.int64]) -> CachedBatches | StreamedBatches | LiveBatches:
        """Rows by number, in that order, repeats allowed; all must be usable."""
        inputs = {name: values[places] for name, values in self.inputs.items()}
        targets, missing = (
            {name: values[places] for name, values in group.items()} for group in (self.targets, self.missing)
        )
        cells = {name: each.take(places) for name, each in self.cells.items()}
        taken = Columns(inputs, targets, self.drop[places], missing, cells, self.bucketed, places)
        return taken._batches(np.ones(len(places), np.bool_))

    def _batches(self, rows: NDArray[np.bool_]) -> CachedBatches | StreamedBatches | LiveBatches:
        streamed = {name: values for name, values in self.inputs.items() if isinstance(values, StoredVectors)}
        held = {name: values for name, values in self.inputs.items() if not isinstance(values, StoredVectors)}
        cached = CachedBatches.from_arrays(held, self.targets, self.missing, rows)
        vectors = {name: values[rows] for name, values in streamed.items()}
        if self.cells:
            places = np.flatnonzero(rows)
            cells = {name: each.take(places) for name, each in self.cells.items()}
            numbers = places if self.numbers is None else self.numbers[places]
            groups = (cached.inputs, cached.targets, cached.missing)
            return LiveBatches(cells, *groups, numbers, self.bucketed, streamed=vectors)
        if not streamed:
            return cached
        return StreamedBatches(vectors, cached.inputs, cached.targets, cached.missing)

    def dropped(self, rows: NDArray[np.bool_] | None = None) -> dict[str, int]:
        """How many rows are not used, by reason; a row with several counts for the first."""
        drop = self.drop if rows is None else self.drop[rows]
        reasons, counts = np.unique(drop[drop != ""].astype(str), return_counts=True)
        return dict(zip(reasons.tolist(), counts.tolist(), strict=True))


def read(config: Config, dataset: Dataset, *, targets: bool, extra: Sequence[str] = ()) -> Table:
    """The cells of every column that does not go through the store. Raises ColumnNotFound before it reads."""
    outputs = [feature.column for feature in config.output_features] if targets else []
    inputs: list[str] = []
    for feature in config.input_features:
        template = template_of(feature.encoder) if isinstance(feature, EncodedInput) else None
        inputs += [feature.column] if template is None else fields(template)
    dataset.require([*inputs, *outputs, *extra])
    tabular = [feature.column for feature in config.input_features if not isinstance(feature, EncodedInput)]
    return read_columns(dataset, [*tabular, *outputs, *extra])


def fit(config: Config, table: Table, train: NDArray[np.bool_], where: str) -> dict[str, Fitted]:
    """The state of every feature but the texts, learnt from the rows that ``train`` marks.

    The classes of a category or set output are those of all rows not skipped: a rare one that the split keeps from training
    is no fault. Their order and what fills a missing one follow from the training rows alone.
    """
    states: dict[str, Fitted] = {}
    for feature in config.input_features:
        if not isinstance(feature, EncodedInput):
            states[feature.name] = features.fit_input(feature, table.columns[feature.column], train, where)
    for output in config.output_features:
        states[output.name] = features.fit_output(output, table.columns[output.column], train, where, table.usable)
    return states


def transform(
    config: Config, states: Mapping[str, Fitted], table: Table, where: str, *, targets: bool
) -> Columns | None:
    """Every row of the columns read; None when there are none, as when only texts are needed."""
    if not table.columns:
        return None
    inputs: dict[str, NDArray[Any]] = {}
    outputs: dict[str, NDArray[Any]] = {}
    missing: dict[str, NDArray[np.float32]] = {}
    drop = table.reasons
    for feature in config.input_features:
        if not isinstance(feature, EncodedInput):
            column = features.transform_input(feature, states[feature.name], table.columns[feature.column], where)
            one = column.values.ndim == 1 and feature.type != "category"
            inputs[feature.name] = column.values[:, None] if one else column.values
            drop = _mark(drop, ~column.keep & column.missing, f"{feature.column}: missing")
            drop = _mark(drop, ~column.keep & ~column.missing, f"{feature.column}: outlier")
            if states[feature.name].missing:
                missing[feature.name] = column.missing.astype(np.float32)[:, None]
    for output in config.output_features if targets else ():
        cells = table.columns[output.column]
        column = features.transform_output(output, states[output.name], cells, where, table.usable)
        outputs[output.name] = column.values
        drop = _mark(drop, ~column.keep, f"{output.column}: missing")
    return Columns(inputs, outputs, drop, missing)


def join(
    config: Config,
    columns: Columns | None,
    gathered: Mapping[str, Vectors],
    live: Mapping[str, LiveColumn],
    states: Mapping[str, FittedText | LiveState],
    where: str,
) -> Columns:
    """Columns and vectors row for row, with the indicators and the rows that texts make unusable."""
    drop = None if columns is None else columns.drop
    inputs = {} if columns is None else dict(columns.inputs)
    missing = {} if columns is None else dict(columns.missing)
    cells: dict[str, Cells] = {}
    for feature in (*config.cached, *config.live):
        state = states[feature.name]
        found = live[feature.name].reasons if isinstance(state, LiveState) else gathered[feature.name].reasons
        if drop is not None and len(drop) != len(found):
            raise DataError(f"{where} changed while it was read. Run again; what was encoded is kept.")
        if isinstance(state, LiveState):
            cells[feature.name] = live[feature.name].filled(state)
        else:
            inputs[feature.name] = without_gaps(feature, gathered[feature.name], state)
        drop = _mark(drop, found == SKIPPED, f"{feature.column}: skipped")
        drop = _mark(drop, found == FORGOTTEN, f"{feature.column}: forgotten")
        if feature.preprocessing.missing_value_strategy == "drop_row":
            drop = _mark(drop, found == MISSING, f"{feature.column}: missing")
        if state.missing:
            missing[feature.name] = (found == MISSING).astype(np.float32)[:, None]
    assert drop is not None  # a config has at least one input
    targets = {} if columns is None else columns.targets
    return Columns(inputs, targets, drop, missing, cells, config.trainer.bucket_by_length)


def reasons(dropped: Mapping[str, int]) -> str:
    """Why rows were dropped, for a message."""
    return ", ".join(f"{count} rows for {reason}" for reason, count in dropped.items()) or "none"


def _mark(drop: NDArray[np.object_] | None, rows: NDArray[np.bool_], reason: str) -> NDArray[np.object_]:
    marked = np.full(len(rows), "", object) if drop is None else drop.copy()
    marked[rows & (marked == "")] = reason
    return marked
