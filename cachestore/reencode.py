"""Encoding stored rows once more, from the file they were built from, and comparing: does the store hold what its encoder gives?"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachestore import dataset as datasets
from cachestore import manifest as manifests
from cachestore import shard
from cachestore.cells import kind_of_spec
from cachestore.dataset import Dataset
from cachestore.encoders import Encoded, Encoder, EncoderLike, label, open_encoder
from cachestore.errors import ConfigError, DamageError, DataError, EncoderError
from cachestore.findings import Findings
from cachestore.index import Index
from cachestore.keys import Fingerprint, fingerprint, key
from cachestore.manifest import PRESENT, Manifest, ManifestColumn, Version
from cachestore.sources import recorded

ENOUGH = 0.999
"""The cosine from which two vectors of one payload count as the same: other hardware and library versions stay above it."""
_WINDOW = 256


@dataclass(frozen=True)
class Named:
    """A version of a name, with its manifest."""

    label: str
    version: Version
    manifest: Manifest


@dataclass(frozen=True)
class Reencoded:
    """How many vectors were compared; cosines of the worst and on average, None when there were none."""

    rows: int
    wrong: int
    least: float | None
    mean: float | None

    def summary(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class _Cells:
    """The cells of one column that could be encoded again: those with a vector."""

    named: Named
    column: ManifestColumn
    encoder: Encoder
    dataset: Dataset
    count: int

    def chosen(self, root: Path, places: Sequence[int]) -> tuple[list[int], NDArray[np.void]]:
        """The data rows of the cells that are at ``places``, sorted, among those with a vector; and their keys."""
        rows, keys, first, seen = [], [np.empty(0, "V32")], 0, 0
        wanted = np.array(places, np.int64)
        for names, reasons in manifests.read_chunks(root, self.named.manifest, self.column.name):
            present = np.flatnonzero(reasons == PRESENT)
            here = present[wanted[(wanted >= seen) & (wanted < seen + len(present))] - seen]
            rows += (first + here).tolist()
            keys.append(names[here])
            first, seen = first + len(reasons), seen + len(present)
        return rows, np.concatenate(keys)


def reencode(
    root: Path,
    index: Index,
    named: Sequence[Named],
    count: int,
    encoders: Sequence[EncoderLike],
    draw: random.Random,
    findings: Findings,
) -> Reencoded:
    """Encode ``count`` random cells of ``named`` again, and compare by cosine.

    Uses those of ``encoders`` that have a column's fingerprint, and the packaged ones. Columns that cannot be compared are noticed.
    """
    asked = [_open(encoder, index) for encoder in encoders]
    at_hand = {fingerprint(encoder.spec): encoder for encoder in asked}
    cells = [found for one in named for found in _cells(root, index, one, at_hand, findings)]
    total = sum(found.count for found in cells)
    chosen = sorted(draw.sample(range(total), min(count, total)))
    cosines: list[float] = []
    start = 0
    for found in cells:
        places = [place - start for place in chosen if start <= place < start + found.count]
        start += found.count
        if places:
            cosines += _compare(root, index, found, places, findings)
    wrong = sum(not cosine >= ENOUGH for cosine in cosines)
    if not cosines:
        return Reencoded(0, 0, None, None)
    return Reencoded(len(cosines), wrong, min(cosines), sum(cosines) / len(cosines))


def _open(encoder: EncoderLike, index: Index) -> Encoder:
    return open_encoder(encoder, known=lambda identity: index.spec(identity) is not None)


def _cells(
    root: Path, index: Index, named: Named, at_hand: dict[Fingerprint, Encoder], findings: Findings
) -> list[_Cells]:
    dataset = _source(named, findings)
    found = []
    for column in named.manifest.columns if dataset else ():
        encoder = at_hand.get(column.fingerprint) or _packaged(column, index)
        if encoder is None:
            said = f"No encoder at hand is that of column {column.name!r} ({label(column.spec)})."
            findings.notice("encoder", named.label, said, "To compare it, give its config or its encoder.")
            continue
        at_hand[column.fingerprint] = encoder
        try:
            parts = manifests.read_chunks(root, named.manifest, column.name)
            count = sum(int((reasons == PRESENT).sum()) for _, reasons in parts)
        except DamageError:
            continue  # reported where chunks are checked
        if dataset is not None:
            found.append(_Cells(named, column, encoder, dataset, count))
    return found


def _source(named: Named, findings: Findings) -> Dataset | None:
    """The file that a version was built from, None when it is not there as it was."""
    source = named.version.provenance.get("source")
    told: Mapping[str, Any] = source if isinstance(source, Mapping) else {}
    where = str(told.get("label"))
    if not told.get("digest"):
        why = f"It was not built from a file ({where})."
    else:
        try:
            dataset = datasets.open_dataset(Path(where))
            if dataset.digest() == told["digest"] and dict(dataset.options) == told.get("options"):
                made = [recorded(named.version.provenance, column) for column in named.manifest.columns]
                dataset.require(dict.fromkeys(name for one in made for name in one.needs))
                return dataset
            why = f"{where} is no longer the file that it was built from."
        except (DataError, OSError) as error:
            why = f"The file that it was built from cannot be read: {error}"
    findings.notice("encoder", named.label, why, "Its rows cannot be encoded again.")
    return None


def _packaged(column: ManifestColumn, index: Index) -> Encoder | None:
    """The encoder of a column, where its spec says enough to open it without a path."""
    spec = column.spec
    if spec.get("kind") == "hashing":
        settings = {
            name: spec[name] for name in ("dim", "ngram_range", "lowercase", "normalize", "dtype") if name in spec
        }
        tried: dict[str, Any] = {"type": "hashing", **settings}
    elif spec.get("kind") == "text":
        names = ("reduce_output", "max_sequence_length", "normalize", "precision", "dtype")
        tried = {"type": "minilm", **{name: spec[name] for name in names if name in spec}}
    else:
        return None
    try:
        encoder = _open(tried, index)
    except (ConfigError, EncoderError):
        return None
    return encoder if fingerprint(encoder.spec) == column.fingerprint else None


def _compare(root: Path, index: Index, cells: _Cells, places: Sequence[int], findings: Findings) -> list[float]:
    """The cosines of stored vectors and new ones; reports what is below ENOUGH."""
    rows, keys = cells.chosen(root, places)
    payloads = _payloads(cells, rows)
    own = [
        payload is not None and keys[at].tobytes() == key(cells.column.fingerprint, payload)
        for at, payload in enumerate(payloads)
    ]
    cosines: list[float] = []
    worst = (2.0, 0)
    kept = np.flatnonzero(own)
    for start in range(0, len(kept), _WINDOW):
        window = kept[start : start + _WINDOW]
        stored = _stored(root, index, keys[window])
        returned = cells.encoder.encode([payloads[at] or b"" for at in window.tolist()])
        fresh = returned.vectors if isinstance(returned, Encoded) else returned
        for at, old, new in zip(window.tolist(), stored, fresh, strict=True):
            if old is not None:
                cosines.append(_cosine(old, new))
                worst = min(worst, (cosines[-1], rows[at]))
    what, name = cells.named.label, cells.column.name
    if len(kept) < len(rows) and kind_of_spec(cells.column.spec) == "image":  # files beside the data, which may change
        said = f"{len(rows) - len(kept):,} pictures of column {name!r} are not what they were when {what} was built, or are gone."
        findings.notice("vector", what, said, "Build its data again to have vectors of what they are now.")
    elif len(kept) < len(rows):
        said = f"{len(rows) - len(kept):,} rows of column {name!r} have keys that are not those of their texts in {cells.dataset.label}."
        findings.damage("vector", what, said, "Build its data again.")
    wrong = sum(not cosine >= ENOUGH for cosine in cosines)
    if wrong:
        said = (
            f"{wrong:,} of {len(cosines):,} vectors of column {name!r} are not what their encoder gives now: "
            f"the cosine of data row {worst[1]} (counted from 0) is {worst[0]:.4f}."
        )
        findings.damage("vector", what, said, "Compare the library versions in the log of the name with those here.")
    return cosines


def _payloads(cells: _Cells, rows: Sequence[int]) -> list[bytes | None]:
    """The bytes of the column's cells at those rows, in increasing order, of the file."""
    found: list[bytes | None] = []
    at = 0
    made = recorded(cells.named.version.provenance, cells.column)
    for batch in cells.dataset.batches(made.needs):
        here = rows[len(found) : bisect_left(rows, at + batch.num_rows)]
        if here:
            part = batch.take([row - at for row in here])
            found += made.cells(cells.dataset, part, 0).payloads
        at += batch.num_rows
        if len(found) == len(rows):
            break
    return found + [None] * (len(rows) - len(found))


def _stored(root: Path, index: Index, keys: NDArray[np.void]) -> list[NDArray[Any] | None]:
    """The stored vectors, None where there is none to serve: that is reported where keys are checked."""
    places = index.lookup(keys.tolist())
    names = index.names(number for number in set(places.shards.tolist()) if number >= 0)
    found: list[NDArray[Any] | None] = [None] * len(keys)
    by_shard: dict[int, list[int]] = defaultdict(list)
    for at, number in enumerate(places.shards.tolist()):
        by_shard[number].append(at)
    for number, here in by_shard.items():
        if number in names:
            try:
                vectors = shard.open_shard(root, names[number]).take(places.rows[here], keys[here])
            except DamageError:
                continue
            for place, vector in zip(here, vectors, strict=True):
                found[place] = vector
    return found


def _cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """1 for two zero vectors, 0 when one of them is zero."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if lengths == 0:
        return float(not a.any() and not b.any())
    return float(a @ b) / lengths
