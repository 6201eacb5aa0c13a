"""Explain: why a build would encode what it would: which texts are new, and how an encoder differs from the nearest that is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cachestore.build import open_sources
from cachestore.diff import FieldChange, spec_changes
from cachestore.encoders import Encoder, EncoderLike, TextSettings, label, open_encoder, parse_settings
from cachestore.keys import Fingerprint, Json, fingerprint
from cachestore.plan import Cells, count
from cachestore.stats import StoredEncoder, stored_encoders
from cachestore.store import Store


@dataclass(frozen=True)
class Nearest:
    """The stored encoder that differs least. ``changes`` lead from its spec to the one asked for."""

    encoder: StoredEncoder
    changes: tuple[FieldChange, ...]
    texts: int
    """of the texts that would be encoded, those that it has vectors of"""


@dataclass(frozen=True)
class ExplainedColumn:
    """A column's cells under its encoder, of which the store holds ``vectors`` vectors; ``nearest`` where texts are new."""

    column: str
    spec: Mapping[str, Json]
    fingerprint: Fingerprint
    vectors: int
    cells: Cells
    nearest: Nearest | None

    @property
    def label(self) -> str:
        """A short name of the encoder for people."""
        return label(self.spec)


@dataclass(frozen=True)
class Explanation:
    """What a build of a dataset would find in the store."""

    rows: int
    columns: tuple[ExplainedColumn, ...]

    @property
    def to_encode(self) -> int:
        """Texts that would be encoded."""
        return sum(column.cells.new for column in self.columns)


def explain(store: Store | None, data: Any, columns: Mapping[str, EncoderLike | Sequence[EncoderLike]]) -> Explanation:
    """Compare what a build of ``data`` needs with what the store holds; None is an empty store. Encodes and writes nothing.

    Raises DataError, ColumnNotFound, and EncoderError for a model that cannot be found.
    """
    dataset, wanted = open_sources(data, columns, partial(_opened, store))
    stored = stored_encoders(store) if store else {}
    nearest = {one.name: _nearest(stored, one.encoder.spec, fingerprint(one.encoder.spec)) for one in wanted}
    counted = count(store, dataset, wanted, {name: found[0].fingerprint for name, found in nearest.items() if found})
    explained = []
    for one in wanted:
        cells, found, identity = counted.columns[one.name], nearest[one.name], fingerprint(one.encoder.spec)
        own = stored.get(identity)
        near = Nearest(*found, cells.elsewhere) if found and cells.new else None
        explained.append(ExplainedColumn(one.name, one.encoder.spec, identity, own.vectors if own else 0, cells, near))
    return Explanation(counted.rows, tuple(explained))


def _opened(store: Store | None, encoder: EncoderLike) -> Encoder:
    """The encoder; ``precision: auto`` is settled by what is stored, else as float32, for to measure it would be to encode."""
    settings = parse_settings(encoder) if isinstance(encoder, str | Mapping) else encoder
    open_one = store.open_encoder if store else open_encoder
    if not isinstance(settings, TextSettings) or settings.precision != "auto":
        return open_one(settings)
    exact, close = (open_one(settings.model_copy(update={"precision": name})) for name in ("float32", "bfloat16"))
    known = store and not store.knows(fingerprint(exact.spec)) and store.knows(fingerprint(close.spec))
    return close if known else exact


def _nearest(
    stored: Mapping[Fingerprint, StoredEncoder], spec: Mapping[str, Json], identity: Fingerprint
) -> tuple[StoredEncoder, tuple[FieldChange, ...]] | None:
    """Another stored encoder: of the same kind if there is one, then with the fewest changes, then with most vectors."""
    others = [
        (other, tuple(spec_changes(other.spec, spec))) for other in stored.values() if other.fingerprint != identity
    ]
    return min(
        others,
        key=lambda found: (found[0].spec.get("kind") != spec.get("kind"), len(found[1]), -found[0].vectors),
        default=None,
    )
