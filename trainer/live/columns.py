"""A column of a dataset as the input of an encoder that runs in the loop."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cachestore.dataset import SkippedCell
from cachestore.manifest import MISSING
from trainer.live.cells import Cells
from trainer.live.state import LiveState


@dataclass(frozen=True)
class LiveColumn:
    """An input's cells, why each is there or not (rows,), and those that are skipped.

    ``indicator``: whether the model is told of missing cells. ``state`` does not say so yet.
    """

    cells: Cells
    reasons: NDArray[np.uint8]
    skipped: tuple[SkippedCell, ...]
    state: LiveState
    indicator: bool

    def fitted(self, train: NDArray[np.bool_]) -> LiveState:
        """The state, with an indicator only where the rows that ``train`` marks have missing cells."""
        return replace(self.state, missing=self.indicator and bool((self.reasons[train] == MISSING).any()))
