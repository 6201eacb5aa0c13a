"""What a cached column of a manifest is made of: which cells of the data, rendered how, through which encoder.

A column with one encoder goes by its own name. One with several has a manifest column for each, ``text@1a2b3c4d``, whose digits
are of the encoder and the template, so that the order in which a config names them changes nothing.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from cachestore.cells import Kind, Wanted, cells_of, kind_of, kind_of_spec
from cachestore.dataset import Cells, Dataset, SkippedCell
from cachestore.encoders import Encoder, EncoderLike, template_of
from cachestore.errors import UsageError
from cachestore.keys import Json, canonical, fingerprint
from cachestore.manifest import MISSING, PRESENT, SKIPPED, ManifestColumn

_DIGITS = 8


@dataclass(frozen=True)
class Source:
    """One manifest column to be. ``columns`` are those of the data that it reads, the one it stands for first.

    ``asked`` are the places it has among the encoders asked for that column.
    """

    name: str
    columns: tuple[str, ...]
    template: str | None
    encoder: Encoder
    asked: tuple[int, ...] = (0,)

    @property
    def described(self) -> Mapping[str, Json]:
        """As it is recorded beside a manifest."""
        return {"columns": list(self.columns), "template": self.template}


def sources(
    columns: Mapping[str, EncoderLike | Sequence[EncoderLike]], open_one: Callable[[EncoderLike], Encoder]
) -> list[Source]:
    """The manifest columns of a build, ordered by name; encoders that are the same are one.

    Raises as ``open_one`` does, and UsageError for a column without an encoder.
    """
    found: list[Source] = []
    for column in sorted(columns):
        asked = several(columns[column])
        if not asked:
            raise UsageError(f"Column {column!r} has no encoder.")
        opened: dict[str, Source] = {}
        for place, like in enumerate(asked):
            encoder, template = open_one(like), template_of(like)
            digits = sha256(canonical([fingerprint(encoder.spec).hex(), template])).hexdigest()[:_DIGITS]
            others = () if template is None else [field for field in fields(template) if field != column]
            before = opened.get(digits) or Source("", (column, *others), template, encoder, ())
            opened[digits] = replace(before, name=f"{column}@{digits}", asked=(*before.asked, place))
        found += [replace(one, name=column) for one in opened.values()] if len(opened) == 1 else opened.values()
    return sorted(found, key=lambda source: source.name)


def several(asked: EncoderLike | Sequence[EncoderLike]) -> Sequence[EncoderLike]:
    """The encoders asked for a column, also where it is one."""
    if isinstance(asked, list | tuple):
        return asked
    one: Any = asked
    return [one]


def find(sources: Sequence[Source], column: str, place: int = 0) -> Source:
    """What became of the encoder that was asked for at that place for a column."""
    return next(one for one in sources if one.columns[0] == column and place in one.asked)


def wanted(sources: Sequence[Source]) -> dict[str, Wanted]:
    """What must be read of each column of the data.

    Raises UsageError where one column is to be texts and pictures.
    """
    found: dict[str, Wanted] = {}
    for source in sources:
        kind = kind_of(source.encoder)
        direct = (fingerprint(source.encoder.spec),) if source.template is None else ()
        for column in source.columns if source.template is None else fields(source.template):
            before = found.get(column, Wanted(kind))
            if before.kind != kind:
                raise UsageError(
                    f"Column {column!r} has encoders of texts and of images. Its cells can be one of them only."
                )
            found[column] = Wanted(kind, tuple(dict.fromkeys([*before.identities, *direct])))
    return found


def payloads(source: Source, read: Mapping[str, Cells]) -> Cells:
    """The payloads of some rows from the cells of their columns: those of its one column, or the template filled from all of them.

    In a template a missing cell is an empty text; a row is missing when all its cells are, and skipped when one is.
    """
    if source.template is None:
        return read[source.columns[0]]
    return fill_template(source.template, read)


def fill_template(template: str, read: Mapping[str, Cells]) -> Cells:
    """As ``payloads``, of a template."""
    parts = {column: read[column] for column in fields(template)}
    count = len(next(iter(parts.values())).reasons)
    reasons = np.full(count, MISSING, np.uint8)
    for part in parts.values():
        reasons[part.reasons == PRESENT] = PRESENT
    skipped: dict[int, SkippedCell] = {}
    for part in parts.values():
        reasons[part.reasons == SKIPPED] = SKIPPED
        for cell in part.skipped:
            skipped.setdefault(cell.row, cell)
    texts: list[bytes | None] = [None] * count
    pieces = [(literal.encode(), field) for literal, field, _, _ in string.Formatter().parse(template)]
    for row in np.flatnonzero(reasons == PRESENT).tolist():
        texts[row] = b"".join(
            literal + ((parts[field].payloads[row] or b"") if field else b"") for literal, field in pieces
        )
    return Cells(texts, reasons, [skipped[row] for row in sorted(skipped)])


def fields(template: str) -> list[str]:
    """The columns that a template names, each once, in its order."""
    return list(dict.fromkeys(field for _, field, _, _ in string.Formatter().parse(template) if field))


@dataclass(frozen=True)
class Recorded:
    """How a column of a manifest was made of its data, as its version's provenance says."""

    kind: Kind
    columns: tuple[str, ...]
    template: str | None

    @property
    def needs(self) -> list[str]:
        """The columns of the data whose cells are read."""
        return [self.columns[0]] if self.template is None else fields(self.template)

    def cells(self, dataset: Dataset, batch: Any, first_row: int) -> Cells:
        """The payloads of a small batch of the data, all read at once."""
        read = {column: cells_of(dataset, batch, column, self.kind, first_row) for column in self.needs}
        return read[self.columns[0]] if self.template is None else fill_template(self.template, read)


def recorded(provenance: Mapping[str, Any], column: ManifestColumn) -> Recorded:
    """How a column of a version was made; by its name where that is all there is."""
    described: Any = provenance.get("columns")
    own = described.get(column.name) if isinstance(described, Mapping) else None
    if not isinstance(own, Mapping):
        own = {"columns": [column.name], "template": None}
    return Recorded(kind_of_spec(column.spec), tuple(own["columns"]), own["template"])
