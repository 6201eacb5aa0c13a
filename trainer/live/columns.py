"""A column of a dataset as the input of an encoder that runs in the loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cachestore.dataset import SkippedCell
from cachestore.errors import DataError
from cachestore.manifest import MISSING, PRESENT
from trainer.features.filling import fill
from trainer.live.cells import Cells, TextCells
from trainer.live.state import LiveState
from trainer.schema.inputs import EncodedInput


@dataclass(frozen=True)
class LiveColumn:
    """An input's cells, why each is there or not (rows,), and the first of ``skipped`` cells. ``state`` is not fitted yet."""

    feature: EncodedInput
    cells: Cells
    reasons: NDArray[np.uint8]
    state: LiveState
    skipped: int = 0
    skipped_cells: tuple[SkippedCell, ...] = ()

    def fitted(self, train: NDArray[np.bool_]) -> LiveState:
        """The state, with an indicator only where the rows that ``train`` marks have missing cells.

        Raises DataError where they have no cell at all to fill missing ones with.
        """
        preprocessing = self.feature.preprocessing
        strategy = preprocessing.missing_value_strategy
        indicator = strategy == "indicator" or preprocessing.missing_value_indicator
        missing = indicator and bool((self.reasons[train] == MISSING).any())
        if strategy != "fill_with_mode" or not isinstance(self.cells, TextCells):
            return replace(self.state, missing=missing)
        most = self.cells.most_frequent(train)
        if most is None:
            raise DataError(
                f"column {self.feature.column!r} has no value in any training row to fill missing ones with"
            )
        return replace(self.state, missing=missing, fill=tuple(map(tuple, most.tolist())))

    def filled(self, state: LiveState) -> Cells:
        """The cells with missing ones filled by ``fill_with_mode``, ``bfill`` and ``ffill``; else as they are."""
        strategy = self.feature.preprocessing.missing_value_strategy
        absent, present = self.reasons == MISSING, self.reasons == PRESENT
        if not absent.any():
            return self.cells
        if strategy in ("bfill", "ffill") and present.any():
            return self.cells.take(
                fill(np.arange(len(present)), present, strategy, None).values
            )  # skipped rows are dropped
        if strategy == "fill_with_mode" and state.fill is not None and isinstance(self.cells, TextCells):
            return self.cells.filled(np.asarray(state.fill, np.int32), absent)
        return self.cells
