"""A finished run: what it tells, and what can be done with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from cachestore.dataset import SkippedCell
from cachestore.encoders import exported
from cachestore.errors import DamageError
from cachestore.store import Store, open_store
from trainer import apply, checkpoint
from trainer.events import Listener
from trainer.loop import Metrics
from trainer.record import Evaluation, Predictions

StoreLike: TypeAlias = Store | str | os.PathLike[str] | None


@dataclass(frozen=True)
class Run:
    """A finished run, as its summary.json has it.

    ``metrics``: split → output feature → metric, of the weights that were kept; those of "train" are of the best epoch.
    ``validation_field`` and ``validation_metric`` chose ``best_epoch`` where there were validation rows; else it is the last.
    ``rows``: rows used, by split. ``dropped``: rows not used, by reason. ``skipped``: cells that are there and could not be
    read or encoded, of all files. ``encoded``, ``hits``: cells of text columns that were computed, and found in the store.
    ``manifests`` and ``references``: by split, what its data is in the store, by id and by name, as in ``reviews@3``.
    ``encoder_learning_rates``: of the inputs whose encoder was trained; ``learning_rate`` is that of the rest of the model.
    ``seconds``: by phase. ``store``: where the store is; None in runs of versions that did not write it down.

    Its directory stands for it: a Run is a path too.
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
    store: str | None = None
    encoder_learning_rates: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """A finished run from its directory. Raises UsageError when there is none."""
        summary = checkpoint.read_summary(Path(path))
        try:
            cells = tuple(SkippedCell(**cell) for cell in summary.pop("skipped_cells"))
            del summary["run"]  # where it was written; it may have moved
            return cls(path=Path(path), skipped_cells=cells, **summary)
        except (KeyError, TypeError) as error:
            raise DamageError(f"{Path(path) / checkpoint.SUMMARY} is damaged ({error}). Train again.") from error

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def encoders(self) -> Mapping[str, Path]:
        """The encoders that the run trained, as directories of plain models, by input feature; ``RUN#FEATURE`` names one."""
        return exported.folders(self.path)

    def predict(self, data: Any, store: StoreLike = None, *, progress: Listener | None = None) -> Predictions:
        """What the run predicts of data, which needs only its input columns: a path, a frame, a table, a mapping of lists.

        ``store``: by default the one it was trained on, which is opened and closed again. Texts that it lacks are encoded and kept.
        """
        with opened(self.store if store is None else store) as there:
            return apply.predict(self, data, there, progress=progress)

    def evaluate(self, data: Any, store: StoreLike = None, *, progress: Listener | None = None) -> Evaluation:
        """Metrics of the run on data that has its output columns; otherwise as ``predict``."""
        with opened(self.store if store is None else store) as there:
            return apply.evaluate(self, data, there, progress=progress)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; ``run`` is the path."""
        found = asdict(self)
        return checkpoint.plain({"run": str(found.pop("path")), **found})  # type: ignore[no-any-return]


@contextlib.contextmanager
def opened(store: StoreLike) -> Iterator[Store]:
    """An open store as it is, and left open; one at a path, by default where the commands have theirs, for the body."""
    if isinstance(store, Store):
        yield store
        return
    with open_store(store) as made:
        yield made
