"""What a run that is put to use tells: its metrics on data, and what it predicts of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cachestore.dataset import SkippedCell
from trainer.evaluation import FinalEvaluation
from trainer.loop import Metrics

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Evaluation:
    """Metrics by output feature of a run on data; ``final`` has their intervals and tables. Counts as those of a Run."""

    metrics: Metrics
    rows: int
    dropped: Mapping[str, int]
    skipped: int
    encoded: int
    hits: int
    seconds: Mapping[str, float]
    skipped_cells: tuple[SkippedCell, ...] = ()
    final: FinalEvaluation | None = None


@dataclass(frozen=True)
class Predictions:
    """What a run predicts of data, one row per row of the data, in its order.

    ``columns``: for each output NAME with classes, ``NAME_predictions`` (the class as the training data writes it, object),
    ``NAME_probability`` of it and ``NAME_probabilities_CLASS`` (float32); for a number, ``NAME_predictions`` (float32); for a
    set, ``NAME_predictions`` (a list of labels, object) and ``NAME_probabilities_LABEL``; for a vector, ``NAME_predictions``
    (float32, (rows, dim)).
    Where ``predicted`` (rows,) is False the row could not be used: None and NaN there; ``dropped`` counts why.
    ``index``: that of the frame, where the data is one of pandas.
    """

    columns: Mapping[str, NDArray[Any]]
    predicted: NDArray[np.bool_]
    dropped: Mapping[str, int]
    skipped: int
    encoded: int
    hits: int
    seconds: Mapping[str, float]
    skipped_cells: tuple[SkippedCell, ...] = ()
    index: Any = None

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    def to_pandas(self) -> pandas.DataFrame:
        """A frame of the columns, with the index of the frame that was predicted; ``frame.join`` puts them beside its own."""
        import pandas

        # a column of vectors (rows, dim) becomes one of arrays
        columns = {name: values if values.ndim == 1 else list(values) for name, values in self.columns.items()}
        return pandas.DataFrame(columns, index=self.index)
