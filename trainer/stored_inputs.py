"""Inputs that go through the store, texts and images: their build, their vectors, and what fills the gaps among these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from cachestore.build import run as run_build
from cachestore.built import Build, Progress
from cachestore.dataset import Dataset, SkippedCell
from cachestore.encoders import EncoderLike
from cachestore.errors import ConfigError, DataError
from cachestore.keys import Json, fingerprint
from cachestore.manifest import MISSING, PRESENT
from cachestore.shard import stored_dtype
from cachestore.sources import find
from cachestore.store import Store
from trainer.features.filling import fill
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput, TextInput
from trainer.settled import SettledEncoder
from trainer.streaming import StoredVectors, stored_vectors


@final
@dataclass(frozen=True)
class FittedText:
    """What a text or image input is to the model. ``missing``: an indicator input follows.

    ``fill`` (dim,): the vector of a missing cell, with ``fill_with_mode``.
    """

    dim: int
    missing: bool
    spec: Mapping[str, Json]
    fill: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        identity = fingerprint(self.spec).hex()
        kind = "image" if self.spec.get("kind") == "image" else "text"
        found = {"type": kind, "dim": self.dim, "missing": self.missing, "fingerprint": identity, "spec": self.spec}
        return found if self.fill is None else {**found, "fill": list(self.fill)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FittedText:
        """What ``to_json`` gave."""
        vector = value.get("fill")
        return cls(value["dim"], value["missing"], value["spec"], None if vector is None else tuple(vector))


@dataclass(frozen=True)
class Vectors:
    """The vectors (rows, dim) of a text feature's cells, zeros where there is none, and why (rows,)."""

    values: NDArray[Any] | StoredVectors
    reasons: NDArray[np.uint8]
    spec: Mapping[str, Json]


@dataclass(frozen=True)
class Built:
    """The build of the text columns of one dataset, None where there are none, and the manifest column of each feature.

    ``label`` names the dataset.
    """

    label: str
    features: Sequence[EncodedInput] = ()
    build: Build | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def manifests(self) -> list[str]:
        """The id of the manifest."""
        return [] if self.build is None else [self.build.manifest.id]

    @property
    def encoded(self) -> int:
        """Vectors computed and stored."""
        return 0 if self.build is None else self.build.counts.encoded

    @property
    def hits(self) -> int:
        """Cells whose vector was stored before."""
        return 0 if self.build is None else self.build.counts.hits

    @property
    def skipped(self) -> int:
        """Cells that cannot be encoded."""
        return 0 if self.build is None else self.build.counts.skipped

    @property
    def skipped_cells(self) -> list[SkippedCell]:
        """The first of them."""
        return [] if self.build is None else [replace(cell, where=self.label) for cell in self.build.skipped_cells]


def build_texts(
    config: Config,
    dataset: Dataset,
    store: Store,
    *,
    trained: Mapping[str, FittedText] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Built:
    """Encode what the store lacks of the text columns.

    With ``trained``, the texts of a run that is put to use: the store gets no name for the data, and EncoderError is raised
    when something must be encoded and an encoder is not the one of the run.
    """
    texts = config.cached
    named = trained is None and not store.readonly
    columns: dict[str, list[EncoderLike]] = {}
    places: dict[str, int] = {}
    for feature in texts:
        encoder: EncoderLike = feature.encoder
        if trained is not None:
            state = trained[feature.name]
            encoder = SettledEncoder(feature, state.spec, state.dim, store)
        places[feature.name] = len(columns.setdefault(feature.column, []))
        columns[feature.column].append(encoder)
    if not texts:
        return Built(dataset.label)
    build = run_build(store, dataset, columns, named=named, progress=progress)
    names = {feature.name: find(build.sources, feature.column, places[feature.name]).name for feature in texts}
    return Built(dataset.label, texts, build, names)


def nbytes(builds: Iterable[Built]) -> int:
    """What the vectors of builds take in memory."""
    total = 0
    for built in builds:
        if built.build is not None:
            manifest = built.build.manifest
            described = [manifest.column(name) for name in set(built.columns.values())]
            total += manifest.rows * sum(each.dim * stored_dtype(each.spec).itemsize for each in described)
    return total


def gather(built: Built, store: Store, limit: int | None = None) -> dict[str, Vectors]:
    """The vectors of every text feature. Raises MissingVector when the store lost one since it was built.

    With a ``limit`` of memory in bytes they are left in the store, and read when a batch is made of them.
    """
    vectors: dict[str, Vectors] = {}
    read: dict[str, Vectors] = {}
    for feature in built.features:
        column = built.columns[feature.name]
        if column not in read and built.build is not None:
            source = built.build.manifest
            values: NDArray[Any] | StoredVectors
            if limit is None:
                values, reasons = store.column(source, column)
            else:
                values, reasons = stored_vectors(store, source, column, limit)
            read[column] = Vectors(values, reasons, built.build.manifest.column(column).spec)
        vectors[feature.name] = _filled(feature, read[column], store)
    return vectors


def fit_texts(config: Config, gathered: Mapping[str, Vectors], train: NDArray[np.bool_]) -> dict[str, FittedText]:
    """The state of every text input: an indicator only where the rows that ``train`` marks have missing cells.

    Raises DataError where they have no vector at all to fill missing ones with.
    """
    states: dict[str, FittedText] = {}
    for feature in config.cached:
        vectors, preprocessing = gathered[feature.name], feature.preprocessing
        strategy = preprocessing.missing_value_strategy
        indicator = strategy == "indicator" or preprocessing.missing_value_indicator
        absent = indicator and bool((vectors.reasons[train] == MISSING).any())
        mode = _mode(feature, vectors, train) if strategy == "fill_with_mode" else None
        states[feature.name] = FittedText(vectors.values.shape[1], absent, vectors.spec, mode)
    return states


def without_gaps(feature: EncodedInput, vectors: Vectors, state: FittedText) -> NDArray[Any] | StoredVectors:
    """The vectors (rows, dim) with missing ones filled by ``fill_with_mode``, ``bfill`` and ``ffill``; else as they are."""
    strategy = feature.preprocessing.missing_value_strategy
    absent = vectors.reasons == MISSING
    if strategy not in ("fill_with_mode", "bfill", "ffill") or not absent.any():
        return vectors.values
    values = _in_memory(feature, vectors)
    stand_in = np.zeros(state.dim, values.dtype) if state.fill is None else np.asarray(state.fill, values.dtype)
    return fill(values, vectors.reasons == PRESENT, strategy, stand_in).values  # what is skipped is dropped


def _filled(feature: EncodedInput, vectors: Vectors, store: Store) -> Vectors:
    """With ``fill_with_const``, missing cells hold the vector of ``fill_value``."""
    absent = vectors.reasons == MISSING
    if not isinstance(feature, TextInput):
        return vectors
    fill_value = feature.preprocessing.fill_value
    if feature.preprocessing.missing_value_strategy != "fill_with_const" or fill_value is None or not absent.any():
        return vectors
    values = _in_memory(feature, vectors).copy()  # another feature may share them
    settled = SettledEncoder(feature, vectors.spec, values.shape[1], store)
    values[absent] = store.embed([fill_value], settled)[0]
    return replace(vectors, values=values)


def _in_memory(feature: EncodedInput, vectors: Vectors) -> NDArray[Any]:
    """The vectors themselves. Raises ConfigError where they are left in the store."""
    if isinstance(vectors.values, StoredVectors):
        raise ConfigError(
            f"trainer.memory_limit: the column {feature.column!r} has missing cells, and vectors that stay in the store cannot be "
            "filled; set missing_value_strategy: indicator or drop_row, or a higher limit"
        )
    return vectors.values


def _mode(feature: EncodedInput, vectors: Vectors, train: NDArray[np.bool_]) -> tuple[float, ...]:
    seen = _in_memory(feature, vectors)[train & (vectors.reasons == PRESENT)]
    if not len(seen):
        raise DataError(f"column {feature.column!r} has no value in any training row to fill missing ones with")
    whole = np.ascontiguousarray(seen).view(np.dtype((np.void, seen.dtype.itemsize * seen.shape[1])))[:, 0]
    _, first, counts = np.unique(whole, return_index=True, return_counts=True)
    most = first[counts == counts.max()].min()  # of equally many, the first in the data
    return tuple(seen[most].tolist())
