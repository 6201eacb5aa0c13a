"""A run put to use: what it predicts of data, and how well."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cachestore.dataset import open_dataset
from cachestore.errors import DataError, UsageError
from cachestore.store import Store
from cachestore.tables import is_frame
from trainer import checkpoint, loop, pins, rows, stored_inputs
from trainer.assemble import State, build_model, default_device
from trainer.batches import Batches
from trainer.config import load_config
from trainer.evaluation import final
from trainer.events import Clock, Listener
from trainer.features import FittedBinary, FittedCategory, FittedSet, FittedVector, fitted_from_json
from trainer.features.read import Table
from trainer.live.columns import LiveColumn
from trainer.live.state import LiveState
from trainer.model import Model
from trainer.prepare import read_live
from trainer.record import Evaluation, Predictions
from trainer.rows import Columns
from trainer.schema import Config
from trainer.schema.outputs import BinaryOutput, CategoryOutput, OutputFeature, SetOutput
from trainer.stored_inputs import Built, FittedText
from trainer.streaming import streams


def evaluate(run: str | os.PathLike[str], data: Any, store: Store, *, progress: Listener | None = None) -> Evaluation:
    """Metrics of a run on data that has its output columns. Texts the store lacks are encoded and kept.

    Nothing is kept of inputs whose encoder runs in the loop. Raises EncoderError where a frozen one, or the one under an adapter, is
    no longer the one of the run.
    """
    use = _use(run, data, store, targets=True, progress=progress)
    if use.batches.rows == 0:
        raise DataError(f"{use.label} has no row to evaluate: {rows.reasons(use.columns.dropped())}.")
    trainer = use.config.trainer
    found = final(
        use.model, use.batches, trainer.eval_batch_size, trainer.use_mixed_precision, seed=use.config.random_seed
    )
    return Evaluation(found.values(), use.batches.rows, use.columns.dropped(), **use.counts(), final=found)


def predict(run: str | os.PathLike[str], data: Any, store: Store, *, progress: Listener | None = None) -> Predictions:
    """What a run predicts of data, which needs only its input columns; otherwise as ``evaluate``."""
    use = _use(run, data, store, targets=False, progress=progress)
    predicted = use.columns.drop == ""
    columns: dict[str, NDArray[Any]] = {}
    if predicted.any():
        trainer = use.config.trainer
        found = loop.predict(use.model, use.batches, trainer.eval_batch_size, trainer.use_mixed_precision)
    else:
        found = {name: torch.zeros(0, *_width(use.states[name])) for name in use.model.outputs}
    for output in use.config.output_features:
        columns.update(_output_columns(output, use.states[output.name], found[output.name], predicted))
    index = data.index if is_frame(data) else None
    return Predictions(columns, predicted, use.columns.dropped(), **use.counts(), index=index)


@dataclass(frozen=True)
class _Use:
    """A run opened on data."""

    config: Config
    states: Mapping[str, State]
    model: Model
    label: str
    columns: Columns
    batches: Batches
    table: Table
    built: Built
    live: Mapping[str, LiveColumn]
    clock: Clock

    def counts(self) -> dict[str, Any]:
        """What Evaluation and Predictions tell alike."""
        built, live = self.built, self.live.values()
        return {
            "skipped": self.table.skipped + built.skipped + sum(column.skipped for column in live),
            "encoded": built.encoded,
            "hits": built.hits,
            "seconds": self.clock.end(),
            "skipped_cells": (
                *self.table.skipped_cells,
                *built.skipped_cells,
                *(cell for column in live for cell in column.skipped_cells),
            ),
        }


def _use(run: str | os.PathLike[str], data: Any, store: Store, *, targets: bool, progress: Listener | None) -> _Use:
    path = Path(run)
    clock = Clock(progress)
    clock.begin("read")
    identity = checkpoint.run_id(path)
    description = checkpoint.read_model(path)
    config = load_config(description["config"])
    states: dict[str, State] = {name: _state(state) for name, state in description["features"].items()}
    lives = _live_states(config, states, path, store)
    states.update(lives)
    model = build_model(config, states)
    checkpoint.read_weights(path, model, model.input_of)
    if checkpoint.run_id(path) != identity:
        raise UsageError(f"The run at {path} was replaced while it was read. Do it again.")
    dataset = open_dataset(data)
    table = rows.read(config, dataset, targets=targets)
    fitted = {name: state for name, state in states.items() if not isinstance(state, FittedText | LiveState)}
    columns = rows.transform(config, fitted, table, dataset.label, targets=targets)
    clock.begin("build")
    texts = {name: state for name, state in states.items() if isinstance(state, FittedText)}
    built = stored_inputs.build_texts(config, dataset, store, trained=texts, progress=clock.building(dataset.label))
    pins.moved(store, path, description["manifests"], clock)
    clock.begin("gather")
    limit = config.trainer.memory_bytes()
    streamed = streams(limit, stored_inputs.nbytes([built]))
    gathered = stored_inputs.gather(built, store, limit if streamed else None)
    live = read_live(config, dataset, store, lives)
    encoded = {name: state for name, state in states.items() if isinstance(state, FittedText | LiveState)}
    joined = rows.join(config, columns, gathered, live, encoded, dataset.label)
    device = default_device()
    batches = joined.select(np.ones(len(joined.drop), np.bool_)).to(device)
    clock.begin("evaluate")
    return _Use(config, states, model.to(device), dataset.label, joined, batches, table, built, live, clock)


def _live_states(config: Config, states: Mapping[str, State], run: Path, store: Store) -> dict[str, LiveState]:
    """Those of the inputs whose encoder runs in the loop, with the places of its weights."""
    if not config.live:
        return {}
    from trainer.live import inputs  # transformers: not where all encoders are frozen

    found = {}
    for feature in config.live:
        state = states[feature.name]
        assert isinstance(state, LiveState)
        found[feature.name] = inputs.of_run(feature, state, run, store)
    return found


def _state(state: Mapping[str, Any]) -> State:
    if state["type"] not in ("text", "image"):
        return fitted_from_json(state)
    return LiveState.from_json(state) if state.get("live") else FittedText.from_json(state)


def _output_columns(
    output: OutputFeature, state: State, found: Tensor, predicted: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    def whole(values: NDArray[Any]) -> NDArray[Any]:
        empty = None if values.dtype == object else np.nan
        filled = np.full((len(predicted), *values.shape[1:]), empty, values.dtype)
        filled[predicted] = values
        return filled

    scores = found.numpy()
    match output, state:
        case CategoryOutput(), FittedCategory(vocabulary=classes):
            chosen, probabilities = scores.argmax(axis=1), scores
        case BinaryOutput(threshold=threshold), FittedBinary(labels=classes):
            chosen = (scores >= np.float32(threshold)).astype(np.int64)
            probabilities = np.stack([1 - scores, scores], axis=1)
        case SetOutput(threshold=threshold), FittedSet(vocabulary=labels):
            columns = {f"{output.name}_predictions": whole(_chosen(scores >= np.float32(threshold), labels))}
            return columns | _probabilities(output.name, labels, scores, whole)
        case _:
            return {f"{output.name}_predictions": whole(scores)}
    return {
        f"{output.name}_predictions": whole(np.array(classes, object)[chosen]),
        f"{output.name}_probability": whole(probabilities[np.arange(len(chosen)), chosen]),
        **_probabilities(output.name, classes, probabilities, whole),
    }


def _probabilities(
    name: str,
    classes: Sequence[str],
    probabilities: NDArray[Any],
    whole: Callable[[NDArray[Any]], NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    return {f"{name}_probabilities_{label}": whole(probabilities[:, at]) for at, label in enumerate(classes)}


def _chosen(said: NDArray[np.bool_], labels: Sequence[str]) -> NDArray[np.object_]:
    """The labels of each row, in the order of the vocabulary, as a list."""
    rows, places = np.nonzero(said)
    lists = np.split(np.array(labels, object)[places], np.searchsorted(rows, np.arange(1, len(said))))
    found = np.empty(len(said), object)
    for row in range(len(said)):
        found[row] = lists[row].tolist()
    return found


def _width(state: State) -> tuple[int, ...]:
    match state:
        case FittedCategory(vocabulary=classes) | FittedSet(vocabulary=classes):
            return (len(classes),)
        case FittedVector(dim=dim):
            return (dim,)
    return ()
