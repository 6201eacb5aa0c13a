"""A dataset's columns, whole."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from cachestore.dataset import Dataset
from trainer.features.cells import Column


def read_columns(dataset: Dataset, columns: Sequence[str]) -> dict[str, Column]:
    """Every cell of ``columns``, in dataset order. Raises DataError and ColumnNotFound as ``Dataset.batches`` does."""
    wanted = list(dict.fromkeys(columns))
    if not wanted:
        return {}
    batches = list(dataset.batches(wanted))
    return {name: pa.chunked_array([batch.column(name) for batch in batches]) for name in wanted}
