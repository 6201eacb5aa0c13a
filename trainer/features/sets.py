"""Sets: the items of a cell, a list or a text of several → one column per item of a vocabulary made from training rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cachestore.errors import DataError, nearest
from trainer.features import cells as c
from trainer.features.filling import Filled, fill
from trainer.schema.preprocessing import SetPreprocessing, SetTargetPreprocessing, Tokenizer

UNKNOWN: Final = "<UNK>"
_SHOWN: Final = 10
_BETWEEN: Final[Mapping[Tokenizer, str]] = {
    "space": r"\s+",
    "comma": r"\s*,\s*",
    "semicolon": r"\s*;\s*",
    "pipe": r"\s*\|\s*",
    "underscore": r"\s*_\s*",
}


@final
@dataclass(frozen=True)
class FittedSet:
    """``vocabulary`` by frequency, then by code point; an output's are its classes.

    An input's begins with ``<UNK>`` when training rows hold items that stand for it; else unknown items are left out.
    ``fill``: the places of the items a missing cell is taken to hold. ``missing``: an indicator input follows.
    """

    vocabulary: tuple[str, ...]
    fill: tuple[int, ...] | None
    missing: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        fill = None if self.fill is None else list(self.fill)
        return {"type": "set", "vocabulary": list(self.vocabulary), "fill": fill, "missing": self.missing}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FittedSet:
        """What ``to_json`` gave."""
        fill = value["fill"]
        return cls(tuple(value["vocabulary"]), None if fill is None else tuple(fill), value["missing"])


@dataclass(frozen=True)
class _Items:
    """The items of all rows one after another, each once a row, and the row of each; ``present`` (rows,): no missing cell."""

    texts: pa.StringArray
    rows: NDArray[np.int64]
    present: NDArray[np.bool_]

    def of(self, rows: NDArray[np.bool_]) -> _Items:
        """Those of the rows that ``rows`` marks; every row keeps its number."""
        mask = rows[self.rows]
        return _Items(self.texts.filter(c.where_true(mask)), self.rows[mask], self.present & rows)


def fit_input(
    column: str, preprocessing: SetPreprocessing, cells: c.Column, train: NDArray[np.bool_], where: str
) -> FittedSet:
    """Vocabulary of the ``most_common`` items by the number of training rows that have them.

    Raises DataError where training rows hold no item at all.
    """
    items = _items(column, preprocessing, cells, where)
    seen = items.of(train)
    absent = bool((~items.present & train).any())
    strategy = preprocessing.missing_value_strategy
    constant = _split(preprocessing, [preprocessing.fill_value]) if strategy == "fill_with_const" else []
    counts = c.counted(seen.texts)
    known = [text for text, _ in counts if text != UNKNOWN][: preprocessing.most_common]
    unknown = len(counts) > len(known) or (absent and UNKNOWN in constant)
    if absent:
        known += [text for text in constant if text not in known and text != UNKNOWN]
    vocabulary = (UNKNOWN, *known) if unknown else tuple(known)
    if not vocabulary:
        raise DataError(f"{where}, column {column!r} has no item in any training row to learn from")
    stand_in = _stand_in(
        column, strategy, constant, vocabulary, _places(seen, vocabulary, unknown=unknown), seen, where
    )
    return FittedSet(vocabulary, stand_in, absent and preprocessing.missing_value_indicator)


def fit_output(
    column: str,
    preprocessing: SetTargetPreprocessing,
    cells: c.Column,
    train: NDArray[np.bool_],
    known: NDArray[np.bool_],
    where: str,
) -> FittedSet:
    """The classes of the rows that ``train`` marks by their frequency there, then those of ``known`` beyond them.

    Raises DataError when there are none.
    """
    items = _items(column, preprocessing, cells, where)
    seen = items.of(train)
    strategy = preprocessing.missing_value_strategy
    constant: list[str] = []
    if strategy == "fill_with_const" and preprocessing.fill_value is not None and (~items.present & known).any():
        constant = _split(preprocessing, [preprocessing.fill_value])
    found = c.counted_first(seen.texts, items.of(known).texts)[: preprocessing.most_common]
    vocabulary = (*found, *(text for text in constant if text not in found))
    if not vocabulary:
        raise DataError(f"{where}, column {column!r} has no item in any row to learn from; a set output needs one")
    places = _places(seen, vocabulary, unknown=False)
    return FittedSet(vocabulary, _stand_in(column, strategy, constant, vocabulary, places, seen, where))


def transform_input(
    column: str, preprocessing: SetPreprocessing, state: FittedSet, cells: c.Column, where: str
) -> Filled:
    """uint8 (rows, vocabulary), 1 in the column of each item. Items that are not known are ``<UNK>``, or left out."""
    items = _items(column, preprocessing, cells, where)
    places = _places(items, state.vocabulary, unknown=state.vocabulary[0] == UNKNOWN)
    return _filled(preprocessing.missing_value_strategy, state, items, places)


def transform_output(
    column: str,
    preprocessing: SetTargetPreprocessing,
    state: FittedSet,
    cells: c.Column,
    where: str,
    used: NDArray[np.bool_] | None = None,
) -> Filled:
    """float32 (rows, vocabulary), 1 in the column of each item. Raises DataError at the first item not seen in training.

    Rows that ``used`` (rows,) excludes may hold any. Where the vocabulary was cut to the most common, others are left out.
    """
    items = _items(column, preprocessing, cells, where)
    places = c.indices(items.texts, state.vocabulary)
    unseen = places < 0 if used is None else (places < 0) & used[items.rows]
    if unseen.any() and len(state.vocabulary) < preprocessing.most_common:
        at = int(unseen.argmax())
        name = items.texts[at].as_py()
        classes = ", ".join(map(repr, state.vocabulary[:_SHOWN])) + (", …" if len(state.vocabulary) > _SHOWN else "")
        why = f"the item {c.shown(name)} is in no row of the training data{nearest(name, state.vocabulary)}"
        c.refuse(where, column, int(items.rows[at]), f"{why}. The model knows {classes}")
    filled = _filled(preprocessing.missing_value_strategy, state, items, places)
    return Filled(filled.values.astype(np.float32), filled.keep, filled.missing)


def _places(items: _Items, vocabulary: tuple[str, ...], *, unknown: bool) -> NDArray[np.int64]:
    """(items,) where each is in the vocabulary; what is not there is -1, or 0 with ``unknown``."""
    places = c.indices(items.texts, vocabulary)
    return np.maximum(places, 0) if unknown else places


def _filled(strategy: str, state: FittedSet, items: _Items, places: NDArray[np.int64]) -> Filled:
    values = np.zeros((len(items.present), len(state.vocabulary)), np.uint8)
    known = places >= 0
    values[items.rows[known], places[known]] = 1
    stand_in = np.zeros(len(state.vocabulary), np.uint8)
    stand_in[list(state.fill or ())] = 1
    return fill(values, items.present, strategy, stand_in)


def _stand_in(
    column: str,
    strategy: str,
    constant: list[str],
    vocabulary: tuple[str, ...],
    places: NDArray[np.int64],
    seen: _Items,
    where: str,
) -> tuple[int, ...] | None:
    """What a missing cell holds: the constant, or the most frequent whole set, ties by the first row that has it.

    ``places`` are those of the items ``seen``; items without one are no part of a set.
    """
    if strategy == "drop_row":
        return None
    if strategy == "fill_with_const":
        return tuple(vocabulary.index(text) for text in constant if text in vocabulary)
    if not seen.present.any():
        raise DataError(f"{where}, column {column!r} has no value in any training row to fill missing ones with")
    # each place once a row, in the order of rows: several items may be unknown
    pairs = np.unique(np.stack([seen.rows, places], axis=1)[places >= 0], axis=0)
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    sets: dict[bytes, int] = {b"": int(seen.present.sum()) - len(starts)}  # rows of none
    for part in np.split(np.ascontiguousarray(pairs[:, 1]), starts[1:]) if len(starts) else []:
        sets[part.tobytes()] = sets.get(part.tobytes(), 0) + 1
    most = max(sets, key=lambda item: sets[item])
    return tuple(np.frombuffer(most, np.int64).tolist())


def _items(
    column: str, preprocessing: SetPreprocessing | SetTargetPreprocessing, cells: c.Column, where: str
) -> _Items:
    array = c.plain(cells)
    if c.is_list(array.type):
        present = c.valid(array)
        lengths = c.lengths(array)
        texts = c.texts(pc.list_flatten(array), where, column)
    else:
        whole = c.texts(array, where, column)
        present = c.valid(whole)
        if preprocessing.tokenizer == "untokenized":
            lengths, texts = present.astype(np.int64), whole.drop_null()
        else:
            parts = pc.split_pattern_regex(whole, _BETWEEN[preprocessing.tokenizer])
            lengths, texts = c.lengths(parts), pc.list_flatten(parts)
            texts = c.without(texts, c.values(pc.binary_length(texts)) == 0)
    if preprocessing.lowercase:
        texts = pc.utf8_lower(texts)
    rows = np.repeat(np.arange(len(present)), lengths)
    encoded = texts.dictionary_encode()
    there = c.valid(encoded.indices)
    codes = np.where(there, c.values(encoded.indices), 0).astype(np.int64)
    # each item once a row, in the order of rows
    _, first = np.unique((rows * (len(encoded.dictionary) + 1) + codes)[there], return_index=True)
    mask = np.zeros(len(rows), np.bool_)
    mask[np.flatnonzero(there)[first]] = True
    return _Items(texts.filter(c.where_true(mask)), rows[mask], present)


def _split(preprocessing: SetPreprocessing | SetTargetPreprocessing, cells: list[str]) -> list[str]:
    """The items of a constant fill; ``<UNK>`` stays as it is."""
    if cells == [UNKNOWN]:
        return cells
    items: list[str] = _items("fill_value", preprocessing, c.strings(cells), "the config").texts.to_pylist()
    return items
