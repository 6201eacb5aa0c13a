"""What differs between two versions of a dataset: rows, columns, and the settings of their encoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from cachestore import manifest as manifests
from cachestore.keys import Json
from cachestore.manifest import Manifest
from cachestore.matching import Codes, Matched, match


@dataclass(frozen=True)
class FieldChange:
    """A setting that differs; ``field`` is dotted where it is nested. An absent one is None and ``absent`` says on which side."""

    field: str
    old: Json
    new: Json
    absent: str = ""

    def to_json(self) -> dict[str, Json]:
        """Plain values; a side without the setting has no value."""
        return {"field": self.field, **{side: getattr(self, side) for side in ("old", "new") if side != self.absent}}


@dataclass(frozen=True)
class Diff:
    """From ``old`` to ``new``.

    ``encoders``: by column, what changed in the spec of its encoder. ``compared``: the columns whose encoders are the same, by
    whose keys rows were compared; where there are none, ``rows`` is None: keys of different encoders tell nothing of the rows.
    """

    old: Manifest
    new: Manifest
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    encoders: Mapping[str, tuple[FieldChange, ...]]
    compared: tuple[str, ...]
    rows: Matched | None

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return self.old.id == self.new.id


def diff(root: Path, old: Manifest, new: Manifest) -> Diff:
    """Compare two manifests of a store. A dataset's rows have no ids: two rows are the same when the keys of their cells are.

    A row of which some cell differs, in the place of another, is changed. Raises DamageError when a chunk is gone or damaged.
    """
    before = {column.name: column for column in old.columns}
    after = {column.name: column for column in new.columns}
    both = [name for name in before if name in after]
    compared = tuple(name for name in both if before[name].fingerprint == after[name].fingerprint)
    return Diff(
        old,
        new,
        tuple(name for name in after if name not in before),
        tuple(name for name in before if name not in after),
        {
            name: tuple(spec_changes(before[name].spec, after[name].spec))
            for name in both
            if before[name].fingerprint != after[name].fingerprint
        },
        compared,
        _rows(root, old, new, compared) if compared else None,
    )


def spec_changes(old: Mapping[str, Json], new: Mapping[str, Json], within: str = "") -> Iterator[FieldChange]:
    """The settings that differ, those of nested mappings one by one, in order of their names."""
    for name in sorted(old.keys() | new.keys()):
        field = f"{within}{name}"
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from spec_changes(before, after, f"{field}.")
        elif name not in old or name not in new:
            yield FieldChange(field, before, after, "old" if name not in old else "new")
        elif before != after or type(before) is not type(after):  # 1 == 1.0 == True
            yield FieldChange(field, before, after)


def _rows(root: Path, old: Manifest, new: Manifest, columns: tuple[str, ...]) -> Matched:
    shared = 0
    if old.columns == new.columns:
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(old.chunks, new.chunks, strict=False))
        shared = len(list(pairs))
    first = sum(rows for _, rows in old.chunks[:shared])  # a chunk that both have need not be read
    found = match(_codes(root, _from(old, shared), columns), _codes(root, _from(new, shared), columns))
    return Matched(
        first + found.kept, first + found.moved, first + found.changed, first + found.removed, first + found.added
    )


def _from(whole: Manifest, chunk: int) -> Manifest:
    chunks = whole.chunks[chunk:]
    return replace(whole, chunks=chunks, rows=sum(rows for _, rows in chunks))


def _codes(root: Path, source: Manifest, columns: tuple[str, ...]) -> Codes:
    """A 64-bit number for every row: of the keys of its cells, and of the reasons of those that have none."""
    names = [column.name for column in source.columns]
    chosen = [names.index(column) for column in columns]
    codes = np.zeros(source.rows, np.uint64)
    at = 0
    for number, (_, rows) in enumerate(source.chunks):
        keys, reasons = manifests.chunk_of(root, source, number)
        part = codes[at : at + rows]
        for place in chosen:
            part *= np.uint64(0x9E3779B97F4A7C15)
            # a key is a digest, so any eight bytes of it are as good as a digest of it
            part += np.ascontiguousarray(keys[place]).view("<u8")[::4]
            part += reasons[place]
        at += rows
    return codes
