"""What a run tells when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore.dataset import SkippedCell
from cachestore.errors import DamageError
from trainer import checkpoint
from trainer.loop import Metrics


@dataclass(frozen=True)
class Run:
    """A finished run, as its summary.json has it.

    ``metrics``: split → output feature → metric, of the weights that were kept; those of "train" are of the best epoch.
    ``validation_field`` and ``validation_metric`` chose ``best_epoch`` where there were validation rows; else it is the last.
    ``rows``: rows used, by split. ``dropped``: rows not used, by reason. ``skipped``: cells that are there and could not be
    read or encoded, of all files. ``encoded``, ``hits``: cells of text columns that were computed, and found in the store.
    ``manifests`` and ``references``: by split, what its data is in the store, by id and by name, as in ``reviews@3``.
    ``seconds``: by phase.
    """

    path: Path
    metrics: Mapping[str, Metrics]
    epochs: int
    best_epoch: int
    learning_rate: float
    batch_size: int
    validation_field: str
    validation_metric: str
    rows: Mapping[str, int]
    dropped: Mapping[str, int]
    left_out: int
    skipped: int
    encoded: int
    hits: int
    manifests: Mapping[str, list[str]]
    seconds: Mapping[str, float]
    skipped_cells: tuple[SkippedCell, ...] = ()
    references: Mapping[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; ``run`` is the path."""
        found = asdict(self)
        return checkpoint.plain({"run": str(found.pop("path")), **found})  # type: ignore[no-any-return]


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


def open_run(path: str | Path) -> Run:
    """A finished run from its directory. Raises UsageError when there is none."""
    summary = checkpoint.read_summary(Path(path))
    try:
        cells = tuple(SkippedCell(**cell) for cell in summary.pop("skipped_cells"))
        del summary["run"]  # where it was written; it may have moved
        return Run(path=Path(path), skipped_cells=cells, **summary)
    except (KeyError, TypeError) as error:
        raise DamageError(f"{Path(path) / checkpoint.SUMMARY} is damaged ({error}). Train again.") from error
