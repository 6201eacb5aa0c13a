"""The cells of a data set's columns as payloads, block by block: texts as they stand in it, pictures from wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

from cachestore import picture_cells, picture_files
from cachestore.dataset import Cells, Dataset, payloads
from cachestore.encoders import Encoder
from cachestore.errors import UsageError
from cachestore.index import Index
from cachestore.keys import Fingerprint, Json
from cachestore.picture_cells import Pictures
from cachestore.picture_files import Folder

Kind: TypeAlias = Literal["text", "image"]


def kind_of(encoder: Encoder) -> Kind:
    """What the cells of an encoder's column must be."""
    return "image" if getattr(encoder, "payload", None) == "image" else kind_of_spec(encoder.spec)


def kind_of_spec(spec: Mapping[str, Json]) -> Kind:
    """As ``kind_of``, of a spec alone."""
    return "image" if spec.get("kind") == "image" else "text"


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a column: its cells, as this kind, and their keys under these fingerprints."""

    kind: Kind
    identities: Sequence[Fingerprint] = ()


@dataclass(frozen=True)
class Part:
    """Some rows of a data set in order."""

    batch: Any
    rows: int
    cells: Mapping[str, Cells]


@final
class CellReader:
    """Reads the columns of a data set once, in order. Raises UsageError where a folder's paths would be read as texts."""

    def __init__(self, dataset: Dataset, columns: Mapping[str, Wanted], index: Index | None = None) -> None:
        if dataset.options["format"] == "folder" and "image" in columns and columns["image"].kind == "text":
            raise UsageError(
                f"{dataset.label} is a folder of pictures, and an encoder of text would embed their paths. "
                "Give column 'image' an encoder of images, such as resnet."
            )
        self._dataset = dataset
        self._columns = columns
        folder = Folder(dataset.folder)
        self._pictures = {
            name: Pictures(name, folder, wanted.identities, index)
            for name, wanted in columns.items()
            if wanted.kind == "image"
        }
        self._first = 0
        self._paths: dict[str, list[bytes]] = {name: [] for name in self._pictures}

    @property
    def outside(self) -> bool:
        """Whether payloads read so far lie outside the data, so that the data alone does not say what they are."""
        return any(pictures.outside for pictures in self._pictures.values())

    def parts(self, cut: int) -> Iterator[Part]:
        """All rows, in parts that end where a multiple of ``cut`` rows does, or before.

        Raises as ``Dataset.batches``, and DataError for a column that does not hold what it must.
        """
        batches = self._batches(cut)
        row = 0
        if not self._pictures:
            for batch in batches:
                yield Part(batch, batch.num_rows, self._texts(batch, row))
                row += batch.num_rows
            return
        with picture_cells.pool() as pool:
            for block in picture_cells.blocks(batches, self._pictures, pool):
                cells = self._texts(block.batch, row)
                if row % cut == 0:
                    self._first, self._paths = row, {name: [] for name in self._pictures}
                for name, found in block.found.items():
                    cells[name] = self._pictures[name].cells(found, row)
                    self._paths[name] += [b"" if one is None else one.path for one in found]
                yield Part(block.batch, block.batch.num_rows, cells)
                row += block.batch.num_rows
        for pictures in self._pictures.values():
            pictures.close()

    def told(self, column: str, row: int, why: str) -> str:
        """Why a cell has no vector, with the file that it names; of a row since the last multiple of ``cut``."""
        paths = self._paths.get(column)
        return picture_files.told(paths[row - self._first], why) if paths else why

    def _batches(self, cut: int) -> Iterator[Any]:
        row = 0
        for batch in self._dataset.batches(list(self._columns)):
            at = 0
            while at < batch.num_rows:
                taken = min(batch.num_rows - at, cut - row % cut)
                yield batch.slice(at, taken)
                at += taken
                row += taken

    def _texts(self, batch: Any, row: int) -> dict[str, Cells]:
        return {name: payloads(batch, name, row) for name in self._columns if name not in self._pictures}


def cells_of(dataset: Dataset, batch: Any, column: str, kind: Kind, first_row: int) -> Cells:
    """The cells of a small batch of a data set, all read at once."""
    if kind == "image":
        return picture_cells.read_cells(batch, column, first_row, Folder(dataset.folder))
    return payloads(batch, column, first_row)
