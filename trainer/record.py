"""What a run that is put to use tells: its metrics on data, and what it predicts of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore.dataset import SkippedCell
from trainer.loop import Metrics


@dataclass(frozen=True)
class Evaluation:
    """Metrics by output feature of a run on data; counts as those of a Run."""

    metrics: Metrics
    rows: int
    dropped: Mapping[str, int]
    skipped: int
    encoded: int
    hits: int
    seconds: Mapping[str, float]
    skipped_cells: tuple[SkippedCell, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """What a run predicts of data, one row per row of the data, in its order.

    ``columns``: for each output NAME with classes, ``NAME_predictions`` (the class as the training data writes it, object),
    ``NAME_probability`` of it and ``NAME_probabilities_CLASS`` (float32); for a number, ``NAME_predictions`` (float32).
    Where ``predicted`` (rows,) is False the row could not be used: None and NaN there; ``dropped`` counts why.
    """

    columns: Mapping[str, NDArray[Any]]
    predicted: NDArray[np.bool_]
    dropped: Mapping[str, int]
    skipped: int
    encoded: int
    hits: int
    seconds: Mapping[str, float]
    skipped_cells: tuple[SkippedCell, ...] = ()
