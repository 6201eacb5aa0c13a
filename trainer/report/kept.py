"""What a run keeps for its report.

predictions.safetensors   of the test rows, else the validation rows: their rows in the data file, targets and predictions
report.json               what the run was trained on: files, classes and values by split, versions
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from cachestore import outside
from cachestore.errors import DamageError
from trainer.checkpoint import plain

PREDICTIONS: Final = "predictions.safetensors"
FACTS: Final = "report.json"
_FORMAT: Final = 1


@dataclass(frozen=True)
class Outcome:
    """Targets and predictions of one output, in the order of ``Kept.rows``.

    ``target`` and ``predicted`` (rows,): class places, 0 and 1, or numbers in the column's units; sets are (rows, classes)
    and vectors (rows, dim). ``probability`` (rows,): of what was predicted. ``scores``: the probability of true (rows,), or of
    every class (rows, classes); None where that would be many numbers.
    """

    target: NDArray[Any]
    predicted: NDArray[Any]
    probability: NDArray[np.float32] | None = None
    scores: NDArray[Any] | None = None


@dataclass(frozen=True)
class Kept:
    """Predictions of one split. ``rows`` (rows,) counts data rows from 0; ``of``: how many rows the split has."""

    rows: NDArray[np.int64]
    of: int
    outputs: Mapping[str, Outcome]


@dataclass(frozen=True)
class Source:
    """A file that a run was trained on; ``path`` is None of a table in memory, whose label says what it was."""

    label: str
    path: str | None
    digest: str | None


@dataclass(frozen=True)
class Facts:
    """What a run was trained on. ``targets``: output → split → counts by class, or what its numbers are like.

    ``split`` is the one whose predictions were kept, ``held_by`` the file of ``sources`` that has it.
    """

    created: str
    store: str
    sources: Mapping[str, Source]
    split: str | None
    held_by: str | None
    targets: Mapping[str, Mapping[str, Mapping[str, Any]]]
    parameters: int
    device: str
    versions: Mapping[str, str] = field(default_factory=dict)


def write(run: Path, facts: Facts, kept: Kept | None) -> None:
    """Write both files."""
    if kept is not None:
        arrays: dict[str, NDArray[Any]] = {"rows": np.ascontiguousarray(kept.rows), "of": np.array(kept.of)}
        for place, outcome in enumerate(kept.outputs.values()):
            values = vars(outcome).items()
            arrays |= {f"{place}.{name}": np.ascontiguousarray(array) for name, array in values if array is not None}
        outside.write(run / PREDICTIONS, save(arrays, {"outputs": json.dumps(list(kept.outputs))}))
    text = json.dumps(plain({"format": _FORMAT, **asdict(facts)}), indent=1, ensure_ascii=False, allow_nan=False)
    outside.write(run / FACTS, (text + "\n").encode())


def read(run: Path) -> tuple[Facts | None, Kept | None]:
    """What a run kept; a run of before there were reports kept nothing. Raises DamageError when a file is not whole."""
    if not (run / FACTS).exists():
        return None, None
    try:
        found = json.loads((run / FACTS).read_bytes())
        del found["format"]
        sources = {name: Source(**source) for name, source in found.pop("sources").items()}
        facts = Facts(sources=sources, **found)
        kept = _read_predictions(run / PREDICTIONS) if facts.split is not None else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise DamageError(f"{FACTS} or {PREDICTIONS} of {run} is damaged ({error}). Train again.") from error
    return facts, kept


def _read_predictions(path: Path) -> Kept:
    data = path.read_bytes()
    arrays = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    outputs: dict[str, Outcome] = {}
    for place, name in enumerate(json.loads(header["__metadata__"]["outputs"])):
        mine = {key.split(".")[1]: array for key, array in arrays.items() if key.startswith(f"{place}.")}
        outputs[name] = Outcome(**mine)
    return Kept(arrays["rows"], int(arrays["of"]), outputs)
