"""From a trained model in memory to what its run keeps for the report."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

import cachestore
from cachestore.dataset import Dataset
from cachestore.store import Store
from trainer import loop
from trainer.assemble import State
from trainer.batches import Batches
from trainer.features import FittedBinary, FittedCategory, FittedNumber, FittedSet
from trainer.model import Model
from trainer.prepare import SPLITS, Prepared
from trainer.report import kept
from trainer.report.kept import Facts, Kept, Outcome, Source
from trainer.schema import Config
from trainer.schema.outputs import BinaryOutput, OutputFeature, SetOutput

ROWS: Final = 100_000  # predictions kept; of a larger split, rows at even distances
_NUMBERS: Final = 1 << 21  # of the probabilities of every class: 4 MB as float16
_BINS: Final = 30


def predicted(
    config: Config,
    model: Model,
    states: Mapping[str, State],
    held_out: Mapping[str, tuple[str, NDArray[np.int64]]],
    batches: Mapping[str, Batches],
) -> Kept | None:
    """The predictions that the report of a run shows: of the test rows, else of the validation rows, None without either."""
    split = _shown(held_out)
    held = None
    if split is not None:
        _, rows = held_out[split]
        targets = {name: target.cpu().numpy() for name, target in batches[split].targets.items()}
        # of a category one number a row is the least; sets and vectors are as wide as they are
        width = max(target.shape[1] if target.ndim > 1 else 1 for target in targets.values())
        step = -(-len(rows) // max(1, min(ROWS, 4 * _NUMBERS // width)))
        parts: dict[str, list[Outcome]] = {output.name: [] for output in config.output_features}
        trainer, at = config.trainer, 0
        for found in loop.predictions(model, batches[split], trainer.eval_batch_size, trainer.use_mixed_precision):
            stop = at + len(next(iter(found.values())))
            first = -at % step
            for output in config.output_features:
                scores = np.ascontiguousarray(found[output.name].numpy()[first::step])
                state, target = states[output.name], targets[output.name][at:stop][first::step]
                parts[output.name].append(_outcome(output, state, target, scores, -(-len(rows) // step)))
            at = stop
        held = Kept(rows[::step], len(rows), {name: _joined(outcomes) for name, outcomes in parts.items()})
    return held


def collect(
    folder: Path,
    config: Config,
    prepared: Prepared,
    store: Store,
    held: Kept | None,
    parameters: int,
    device: str,
) -> Dataset | None:
    """Write into the run ``folder`` what its report needs, ``held`` among it.

    Returns the data that the rows of ``held`` are of, None where nothing was held out.
    """
    split = _shown(prepared.held_out)
    held_by = None if split is None else prepared.held_out[split][0]
    sources = {
        name: Source(dataset.label, None if dataset.path is None else str(dataset.path.absolute()), dataset.digest())
        for name, dataset in prepared.opened.items()
    }
    facts = Facts(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        store=str(store.root),
        sources=sources,
        split=split,
        held_by=held_by,
        targets={output.name: _targets(prepared, output) for output in config.output_features},
        parameters=parameters,
        device=device,
        versions={
            "cachestore": cachestore.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )
    kept.write(folder, facts, held)
    return None if held_by is None else prepared.opened[held_by]


def _shown(held_out: Mapping[str, object]) -> str | None:
    """The split whose rows the report shows."""
    return next((name for name in ("test", "validation") if name in held_out), None)


def _joined(parts: Sequence[Outcome]) -> Outcome:
    def whole(arrays: Sequence[NDArray[Any] | None]) -> Any:
        there = [array for array in arrays if array is not None]
        return np.concatenate(there) if there else None

    return Outcome(*map(whole, zip(*(vars(part).values() for part in parts), strict=True)))


def _outcome(output: OutputFeature, state: State, target: NDArray[Any], scores: NDArray[Any], rows: int) -> Outcome:
    """Of some of the ``rows`` that are kept."""
    match output, state:
        case BinaryOutput(threshold=threshold), FittedBinary():
            chosen = scores >= np.float32(threshold)
            probability = np.where(chosen, scores, 1 - scores)
            return Outcome(target.astype(np.uint8), chosen.astype(np.uint8), probability, scores)
        case _, FittedCategory():
            best = scores.argmax(axis=1)
            probability = np.take_along_axis(scores, best[:, None], 1)[:, 0]
            every = scores.astype(np.float16) if rows * scores.shape[1] <= _NUMBERS else None
            return Outcome(target.astype(np.int32), best.astype(np.int32), probability, every)
        case _, FittedNumber():
            return Outcome(np.asarray(state.restore(target), np.float32), scores)
        case SetOutput(threshold=threshold), _:
            return Outcome(target.astype(np.uint8), (scores >= np.float32(threshold)).astype(np.uint8))
    return Outcome(target.astype(np.float32), scores)


def _targets(prepared: Prepared, output: OutputFeature) -> dict[str, dict[str, Any]]:
    """By split, how many rows have each class or label, or where the numbers lie."""
    state = prepared.states[output.name]
    values = {
        name: prepared.batches[name].targets[output.name].cpu().numpy()
        for name in SPLITS
        if prepared.batches[name].rows
    }
    match state:
        case FittedCategory(vocabulary=classes):
            return {
                name: {"counts": np.bincount(found, minlength=len(classes)).tolist()} for name, found in values.items()
            }
        case FittedSet():
            return {name: {"counts": (found > 0.5).sum(axis=0).tolist()} for name, found in values.items()}
        case FittedBinary():
            return {name: {"counts": np.bincount(found > 0.5, minlength=2).tolist()} for name, found in values.items()}
        case FittedNumber():
            restored = {name: np.asarray(state.restore(found), np.float64) for name, found in values.items()}
            low = min(float(found.min()) for found in restored.values())
            high = max(float(found.max()) for found in restored.values())
            edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
            return {
                name: {
                    "mean": float(found.mean()),
                    "std": float(found.std()),
                    "min": float(found.min()),
                    "median": float(np.median(found)),
                    "max": float(found.max()),
                    "edges": edges.tolist(),
                    "counts": np.histogram(found, edges)[0].tolist(),
                }
                for name, found in restored.items()
            }
    return {}
