"""The rows that a run gets most wrong, with what they hold: texts, pictures and the other inputs, from the data file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cachestore.dataset import Dataset, open_dataset
from cachestore.encoders import template_of
from cachestore.errors import CachestoreError
from cachestore.keys import Json
from cachestore.picture_cells import read_cells
from cachestore.picture_files import Folder
from cachestore.sources import fields
from trainer.config import load_config
from trainer.report.kept import Facts, Outcome
from trainer.schema import Config
from trainer.schema.inputs import EncodedInput

SHOWN: Final = 12
LARGEST: Final = 64 << 20  # bytes of a data file that training reads again for its report
_CHARACTERS: Final = 600
_PIXELS: Final = 160
_TABULAR: Final = 8
_THUMBNAIL: Final[dict[str, Json]] = {"resize": _PIXELS, "crop": [_PIXELS, _PIXELS], "interpolation": "bilinear"}


@dataclass(frozen=True)
class Cell:
    """What an input holds: a text, or a picture as a data URI."""

    column: str
    text: str = ""
    picture: str = ""
    long: bool = False


@dataclass(frozen=True)
class Contents:
    """The cells of rows, or why they cannot be shown: a sentence."""

    rows: Mapping[int, Sequence[Cell]] = field(default_factory=dict)
    absent: str = ""


def worst(kind: str, outcome: Outcome) -> NDArray[np.int64]:
    """Places of up to SHOWN wrong predictions: those held most probable, or furthest from the truth, first."""
    match kind:
        case "number":
            badness = np.abs(outcome.predicted.astype(np.float64) - outcome.target)
        case "category" | "binary" if outcome.probability is not None:
            wrong = outcome.target != outcome.predicted
            badness = np.where(wrong, outcome.probability, 0)
        case "set":
            badness = (outcome.target != outcome.predicted).sum(axis=1)
        case "vector":
            badness = np.linalg.norm(outcome.predicted.astype(np.float64) - outcome.target, axis=1)
        case _:
            return np.zeros(0, np.int64)
    order = np.argsort(-badness, kind="stable")[:SHOWN]
    return np.asarray(order[badness[order] > 0], np.int64)


def contents(
    config: Mapping[str, Any], facts: Facts, rows: NDArray[np.int64], data: Any = None, largest: int | None = None
) -> Contents:
    """What the inputs hold at ``rows`` (data rows from 0) of the file that the kept predictions are of.

    ``data`` stands for that file where it is not where it was. One that is not what the run was trained on, is not there,
    or has more than ``largest`` bytes is said to be so.
    """
    source = facts.sources[facts.held_by or "train"]
    if data is None and source.path is None:
        return Contents(absent=f"The rows were {source.label}, in memory: name a file of them to see what they hold.")
    try:
        dataset = open_dataset(data if data is not None else Path(source.path or ""))
        if largest is not None and dataset.path is not None and dataset.path.is_file():
            size = dataset.path.stat().st_size
            if size > largest:
                return Contents(
                    absent=f"{dataset.label} has {size / 1e6:,.0f} MB, too many to be read again after each training: "
                    "cachestore report shows what these rows hold."
                )
        if source.digest is not None and dataset.digest() not in (None, source.digest):
            return Contents(
                absent=f"{dataset.label} is not what the run was trained on any more, so its rows are not shown."
            )
        return Contents(_read(load_config(config), dataset, sorted(set(rows.tolist()))))
    except (CachestoreError, OSError) as error:
        return Contents(absent=f"The rows cannot be shown: {error}")


def _read(config: Config, dataset: Dataset, rows: Sequence[int]) -> dict[int, list[Cell]]:
    texts: dict[str, None] = {}
    pictures: dict[str, None] = {}
    others: dict[str, None] = {}
    for feature in config.input_features:
        if not isinstance(feature, EncodedInput):
            others[feature.column] = None
        elif feature.type == "image":
            pictures[feature.column] = None
        else:
            template = template_of(feature.encoder)
            texts |= dict.fromkeys([feature.column] if template is None else fields(template))
    plain = [column for column in others if column not in texts][:_TABULAR]
    wanted = list(dict.fromkeys([*pictures, *texts, *plain]))
    folder = Folder(dataset.folder)
    found: dict[int, list[Cell]] = {}
    first = 0
    for batch in dataset.batches(wanted):
        for row in rows:
            if first <= row < first + batch.num_rows:
                one = batch.slice(row - first, 1)
                found[row] = [
                    *(_picture(one, column, row, folder) for column in pictures),
                    *(_text(one, column, column in texts) for column in wanted if column not in pictures),
                ]
        first += batch.num_rows
        if first > rows[-1]:
            break
    return found


def _text(row: Any, column: str, long: bool) -> Cell:
    """One cell of a row, a record batch of length 1."""
    try:
        value = row.column(column)[0].as_py()
    except UnicodeDecodeError:
        return Cell(column, "(not UTF-8)", long=long)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = "(missing)" if value is None else str(value)
    return Cell(column, text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + " …", long=long)


def _picture(row: Any, column: str, place: int, folder: Folder) -> Cell:
    payload = read_cells(row, column, place, folder).payloads[0]
    if payload is None:
        return Cell(column, "(missing)")
    from cachestore.encoders import pictures

    pixels = np.empty((1, _PIXELS, _PIXELS, 3), np.uint8)
    (done,) = pictures.shared().start([payload], _THUMBNAIL, pixels)
    if refused := done.result():
        return Cell(column, f"({refused})")
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels[0]).save(out, "JPEG", quality=80)
    return Cell(column, picture="data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii"))


__all__ = ["LARGEST", "SHOWN", "Cell", "Contents", "contents", "worst"]
