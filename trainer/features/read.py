"""A dataset's columns, whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cachestore.dataset import KEPT_SKIPPED, Dataset, SkippedCell, text_column
from trainer.features import cells as c

_WHY: Final = "is not UTF-8; save the file as UTF-8"


@dataclass(frozen=True)
class Table:
    """Columns in dataset order. A row with a cell that is not UTF-8 is null in every column, so that nothing is learnt of it.

    ``reasons`` (rows,): why a row is skipped, "" where it is not; ``skipped_cells``: the first KEPT_SKIPPED of ``skipped``.
    """

    columns: Mapping[str, c.Column]
    reasons: NDArray[np.object_]
    skipped: int = 0
    skipped_cells: tuple[SkippedCell, ...] = ()

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(rows,) False for the skipped rows."""
        return np.asarray(self.reasons == "", np.bool_)


def read_columns(dataset: Dataset, columns: Sequence[str]) -> Table:
    """Every cell of ``columns``. Raises DataError and ColumnNotFound as ``Dataset.batches`` does."""
    wanted = list(dict.fromkeys(columns))
    if not wanted:
        return Table({}, np.zeros(0, object))
    batches = list(dataset.batches(wanted))
    found = {name: pa.chunked_array([batch.column(name) for batch in batches]) for name in wanted}
    invalid = {name: np.concatenate([_invalid(part, name) for part in cells.chunks]) for name, cells in found.items()}
    reasons = np.full(sum(batch.num_rows for batch in batches), "", object)
    for name, mask in invalid.items():
        reasons[mask & (reasons == "")] = f"{name}: skipped"
    skipped = sum(int(mask.sum()) for mask in invalid.values())
    if not skipped:
        return Table(found, reasons)
    places = sorted((row, at) for at, name in enumerate(wanted) for row in np.flatnonzero(invalid[name]).tolist())
    told = tuple(SkippedCell(row, wanted[at], _WHY, dataset.label) for row, at in places[:KEPT_SKIPPED])
    return Table({name: _emptied(cells, reasons != "", name) for name, cells in found.items()}, reasons, skipped, told)


def _invalid(part: pa.Array, name: str) -> NDArray[np.bool_]:
    """(rows,) True for cells that are there and not UTF-8."""
    plain = c.plain(part)
    return text_column(plain, name)[1] if c.is_text(plain.type) else np.zeros(len(plain), np.bool_)


def _emptied(cells: pa.ChunkedArray, rows: NDArray[np.bool_], name: str) -> pa.ChunkedArray:
    """Null where ``rows`` (rows,) is True."""
    parts = [c.plain(part) for part in cells.chunks]
    if c.is_text(parts[0].type):
        parts = [text_column(part, name)[0] for part in parts]
    starts = np.cumsum([0, *(len(part) for part in parts)])
    masks = [rows[start : start + len(part)] for part, start in zip(parts, starts[:-1].tolist(), strict=True)]
    return pa.chunked_array([c.without(part, mask) for part, mask in zip(parts, masks, strict=True)])
