"""A look at data that nobody has described: what each column seems to hold, from its first rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cachestore.dataset import Dataset, text_column
from cachestore.picture_folders import SUFFIXES
from trainer.features import cells as c
from trainer.features.binary import FALSE, TRUE

ROWS: Final = 50_000
_SAMPLE: Final = 2_000  # cells that are looked at one by one
_MOST_CATEGORIES: Final = 1_000
_ITEMS: Final = {"pipe": "|", "semicolon": ";", "comma": ","}
_ID: Final = re.compile(r"(?:^|[\s_.-])(?:id|uuid|guid|key)$|^(?:index|unnamed: ?\d+)$|[a-z]I[Dd]$", re.IGNORECASE)
_DATE: Final = r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[-+]\d{2}:?\d{2})?)?$"
_VECTOR: Final = re.compile(
    r"^[\s\[({]*(?:[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?[\s,;]+){3,}[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?[\s\])}]*$"
)
_PUNCTUATION: Final = ("?", "-", "--", ".")
_PICTURES: Final = tuple(suffix.lower() for suffix in SUFFIXES)


@dataclass(frozen=True)
class Column:
    """What a column seems to hold: ``kind`` is a feature type, None where nothing can be learnt of it, which ``why`` says.

    ``missing``: the share of cells that are. ``distinct``: how many values there are. ``counts``: the most frequent of them, where
    they are few enough to be classes. ``words``: of a text, in the middle and at the 95th percentile. ``settings``: of the feature.
    """

    name: str
    kind: str | None
    why: str = ""
    rows: int = 0
    missing: float = 0.0
    distinct: int = 0
    counts: tuple[tuple[str, int], ...] = ()
    words: tuple[int, int] = (0, 0)
    settings: Mapping[str, Any] = field(default_factory=dict)


def look(dataset: Dataset, columns: Sequence[str] | None = None) -> dict[str, Column]:
    """Every column, or those asked for, by name, from the first ``ROWS`` rows. Raises DataError where they cannot be read."""
    _, there = dataset.lacking(columns or ["\0"])  # of JSON Lines, the columns of later rows as well
    names = [name for name in there if name] if columns is None else list(columns)
    batches, rows = [], 0
    for batch in dataset.batches(names):
        batches.append(batch)
        rows += batch.num_rows
        if rows >= ROWS:
            break
    return {name: _look(name, [batch.column(place) for batch in batches]) for place, name in enumerate(names)}


def _look(name: str, parts: Sequence[pa.Array]) -> Column:
    array = c.plain(pa.chunked_array([c.plain(part) for part in parts]))
    kind = array.type
    rows = len(array)
    missing = array.null_count / rows if rows else 0.0
    if pa.types.is_null(kind) or array.null_count == rows:
        return Column(name, None, "all cells are empty", rows, 1.0)
    if pa.types.is_temporal(kind) and not pa.types.is_duration(kind) and not pa.types.is_time(kind):
        return Column(name, "date", "", rows, missing)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _list(name, array, missing)
    if pa.types.is_struct(kind):
        fields = {kind.field(place).name for place in range(kind.num_fields)}
        if {"bytes", "path"} <= fields:
            return Column(name, "image", "", rows, missing)
        return Column(name, None, f"cells of type {kind}", rows, missing)
    if pa.types.is_nested(kind) or pa.types.is_duration(kind) or pa.types.is_time(kind):
        return Column(name, None, f"cells of type {kind}", rows, missing)
    if pa.types.is_binary(kind) and _pictures(array):
        return Column(name, "image", "", rows, missing)
    if c.is_text(kind):
        array, _ = text_column(array, name)  # what is not UTF-8 is skipped when it is read
    text = c.texts(array, "the data", name)
    missing = text.null_count / rows
    counts = c.counted(text)
    if not counts:
        return Column(name, None, "all cells are empty", rows, 1.0)
    return _texts(name, text, counts, missing, numeric=not c.is_text(kind) and not pa.types.is_boolean(kind))


def _list(name: str, array: Any, missing: float) -> Column:
    inner = array.type.value_type
    if not (pa.types.is_integer(inner) or pa.types.is_floating(inner)):
        return Column(name, "set", "", len(array), missing)
    lengths = pc.unique(pc.list_value_length(array).drop_null()).to_pylist()
    if len(lengths) == 1:
        return Column(name, "vector", "", len(array), missing)
    return Column(name, "set", "", len(array), missing)


def _pictures(array: pa.Array) -> bool:
    heads = [bytes(cell[:4]) for cell in array.drop_null()[:20].to_pylist()]
    return all(head.startswith((b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*", b"MM\0")) for head in heads)


def _texts(name: str, text: pa.StringArray, counts: list[tuple[str, int]], missing: float, *, numeric: bool) -> Column:
    rows, distinct = len(text), len(counts)
    present = rows - text.null_count
    few = tuple(counts[:_MOST_CATEGORIES]) if distinct <= _MOST_CATEGORIES else ()
    values = [value for value, _ in counts]

    def column(kind: str | None, why: str = "", words: tuple[int, int] = (0, 0), **settings: Any) -> Column:
        return Column(name, kind, why, rows, missing, distinct, few, words, settings)

    sample: list[str] = text.drop_null()[:_SAMPLE].to_pylist()
    if distinct == 1 and rows > 1:
        return column(None, f"always {c.shown(values[0])}")
    if distinct == 2 and all(value.lower() in TRUE + FALSE for value in values):
        return column("binary")
    if numeric or _all_match(text, c.NUMBER, c.MISSING_NUMBERS):
        whole = all(cell.lstrip("+-").isdigit() for cell in sample)
        if whole and distinct == present > 20 and _steps(sample):
            return column(None, "numbers its rows")
        if whole and _ID.search(name) and distinct > 20:
            return column(None, "an identifier by its name")
        return column("number", whole=whole)
    if sum(cell.lower().endswith(_PICTURES) for cell in sample) >= 0.9 * len(sample):
        return column("image")
    if _all_match(text, _DATE, ()):
        return column("date")
    if (
        all(_VECTOR.match(cell) for cell in sample)
        and len({len(re.split(r"[\s,;]+", cell.strip(" []{}()"))) for cell in sample}) == 1
    ):
        return column("vector")
    lengths = np.array([len(cell.split()) for cell in sample])
    words = int(np.median(lengths)), int(np.percentile(lengths, 95))
    for tokenizer, mark in _ITEMS.items():
        if _is_set(sample, mark, distinct):
            return column("set", tokenizer=tokenizer)
    # several words are a label where they come again and again, else a text
    if (
        distinct <= min(_MOST_CATEGORIES, max(20, present // 20))
        and words[1] <= 12
        and (lengths.mean() < 2.5 or distinct <= present / 4)
    ):
        return column("category", words=words)
    if lengths.mean() >= 2.5:
        return column("text", words=words)
    if _ID.search(name) or (distinct >= 0.9 * present and present > 50):
        return column(None, "almost every row has a value of its own")
    return column("category")


def _all_match(text: pa.StringArray, pattern: str, also: tuple[str, ...]) -> bool:
    matches = pc.match_substring_regex(text, pattern)
    if also:
        matches = pc.or_(matches, pc.is_in(pc.utf8_lower(text), value_set=c.strings(also)))
    # a column of nothing but words for missing is no column of numbers
    return bool(pc.all(matches).as_py()) and bool(pc.any(pc.match_substring_regex(text, pattern)).as_py())


def _steps(sample: Sequence[str]) -> bool:
    numbers = [int(cell) for cell in sample]
    return all(after - before == 1 for before, after in pairwise(numbers))


def _is_set(sample: Sequence[str], mark: str, distinct: int) -> bool:
    """Whether cells are several items, most of which come again in other company, and not sentences."""
    if sum(mark in cell for cell in sample) < 0.3 * len(sample):
        return False
    items = [item.strip() for cell in sample for item in cell.split(mark) if item.strip()]
    return len(set(items)) <= min(len(items) / 5, distinct - 1) and max(len(item.split()) for item in items) <= 4


def looks_missing(column: Column) -> str | None:
    """A value that probably stands for a missing one, such as ``?``."""
    return next((value for value, _ in column.counts if value in _PUNCTUATION), None)
