"""Which rows train, which validate, which test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from cachestore.errors import DataError
from trainer.features import cells as c
from trainer.features.dates import instants
from trainer.schema.preparation import (
    DatetimeSplit,
    FixedSplit,
    GroupSplit,
    HashSplit,
    KFoldSplit,
    RandomSplit,
    SplitConfig,
    StratifySplit,
)

Shares: TypeAlias = tuple[float, float, float]

TRAIN, VALIDATION, TEST = 0, 1, 2
_WORDS: Final = {
    **dict.fromkeys(("0", "train", "training"), TRAIN),
    **dict.fromkeys(("1", "validation", "valid", "val", "dev"), VALIDATION),
    **dict.fromkeys(("2", "test"), TEST),
}
MISSING: Final = b"\0missing"  # what a missing value hashes as
_NAMES: Final = ("train", "validation", "test")


def split(
    config: SplitConfig,
    columns: Mapping[str, c.Column],
    rows: int,
    seed: int,
    where: str,
    *,
    used: NDArray[np.bool_] | None = None,
) -> NDArray[np.int8]:
    """0, 1 or 2 for every row. ``columns`` has the cells of those that the split names.

    A row that ``used`` (rows,) excludes may have no split in a fixed one, nor a date: nothing follows from it.

    The same rows, config and seed give the same split. Raises DataError when no row would train, or a share that was
    asked for would be empty.
    """
    seed = own if (own := getattr(config, "seed", None)) is not None else seed
    shares: Shares = getattr(config, "probabilities", (1.0, 0.0, 0.0))
    match config:
        case RandomSplit():
            parts = _drawn(np.zeros(rows, np.int64), shares, seed, least=1)
        case FixedSplit():
            parts = _fixed(c.texts(columns[config.column], where, config.column), where, config.column, used)
        case StratifySplit():
            parts = _drawn(_codes(columns, config.column, where), shares, seed, least=0)
        case HashSplit():
            parts = _hashed(c.texts(columns[config.column], where, config.column), shares)
        case DatetimeSplit():
            parts = _by_time(config, columns[config.column], where, used)
        case GroupSplit():
            parts = _grouped(_codes(columns, config.column, where), shares, seed)
        case KFoldSplit():
            shares = (1.0, config.validation, 1.0)
            parts = _folded(config, columns, rows, seed, where)
    counts = np.bincount(parts, minlength=3)
    named = "".join(f", column {name!r}" for name in config.columns())
    for name, share, count in zip(_NAMES, shares, counts, strict=True):
        if share > 0 and count == 0:
            raise DataError(
                f"{where}{named}: the {config.type} split of {rows} {'row' if rows == 1 else 'rows'} leaves none for {name}. "
                "Give more data, change preprocessing.split, or give the files of the other splits"
            )
    return parts


def _codes(columns: Mapping[str, c.Column], column: str, where: str) -> NDArray[np.int64]:
    """(rows,) a number for each distinct text, from 0 in the order they come; missing cells have one too."""
    encoded = c.texts(columns[column], where, column).dictionary_encode(null_encoding="encode")
    return c.values(encoded.indices).astype(np.int64)


def _by_time(config: DatetimeSplit, cells: c.Column, where: str, used: NDArray[np.bool_] | None) -> NDArray[np.int8]:
    seconds, present = instants(cells, config.datetime_format, where, config.column)
    needed = np.ones(len(present), np.bool_) if used is None else used
    if (needed & ~present).any():
        c.refuse(
            where,
            config.column,
            int((needed & ~present).argmax()),
            "the cell is empty, and rows are split by it; fill it in, or remove the row",
        )
    ordered = np.sort(seconds[needed])
    parts = np.zeros(len(seconds), np.int8)
    reached = 0.0
    for part, share in zip((VALIDATION, TEST), config.probabilities[:2], strict=True):
        reached += share
        first = round(reached * len(ordered))
        if first < len(ordered):
            start, stop = (int(np.searchsorted(ordered, ordered[first], side)) for side in ("left", "right"))
            first = start if first - start <= stop - first else stop  # rows of one moment go where most of them are
        if first < len(ordered):  # else no row is left for this part
            parts[needed & (seconds >= ordered[first])] = part
    if config.probabilities[2] == 0:
        parts[parts == TEST] = VALIDATION  # the last bit of a sum of shares
    return parts


def _grouped(groups: NDArray[np.int64], shares: Shares, seed: int) -> NDArray[np.int8]:
    """Groups in an order drawn, each where its middle row falls; a part left empty takes the smallest group of another."""
    sizes = np.bincount(groups)
    order = np.random.default_rng(seed).permutation(len(sizes))
    ends = np.cumsum(sizes[order])
    middles = (ends - sizes[order] / 2) / max(len(groups), 1)
    of = np.zeros(len(sizes), np.int8)
    of[order] = np.where(middles < shares[0], TRAIN, np.where(middles < shares[0] + shares[1], VALIDATION, TEST))
    if shares[2] == 0:
        of[of == TEST] = VALIDATION if shares[1] else TRAIN  # the last bit of a sum of shares
    for part, share in enumerate(shares):
        if share > 0 and not (of == part).any():
            spare = np.flatnonzero((np.bincount(of, minlength=3) > 1)[of])
            if len(spare):
                of[spare[sizes[spare].argmin()]] = part
    return of[groups]


def _folded(config: KFoldSplit, columns: Mapping[str, c.Column], rows: int, seed: int, where: str) -> NDArray[np.int8]:
    kinds = np.zeros(rows, np.int64) if config.column is None else _codes(columns, config.column, where)
    groups = None if config.group is None else _codes(columns, config.group, where)
    folds = _dealt(kinds, config.folds, seed) if groups is None else _dealt_groups(kinds, groups, config.folds, seed)
    parts = np.full(rows, TEST, np.int8)
    rest = folds != config.fold
    shares = (1 - config.validation, config.validation, 0.0)
    if groups is None:
        parts[rest] = _drawn(kinds[rest], shares, seed, least=int(config.column is None))
    else:
        parts[rest] = _grouped(np.unique(groups[rest], return_inverse=True)[1], shares, seed)
    return parts


def _dealt(kinds: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Rows in an order drawn, kind after kind, dealt like cards: folds differ by a row at most, in all and in each kind."""
    order = np.random.default_rng(seed).permutation(len(kinds))
    order = order[np.argsort(kinds[order], kind="stable")]
    found = np.empty(len(kinds), np.int64)
    found[order] = np.arange(len(kinds)) % folds
    return found


def _dealt_groups(kinds: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Groups, the largest first, each to the fold that has fewest rows of the group's most frequent kind, then of any."""
    sizes = np.bincount(groups)
    pairs, counts = np.unique(np.stack([groups, kinds]), axis=1, return_counts=True)
    kind_of = np.zeros(len(sizes), np.int64)
    last = np.lexsort((counts, pairs[0]))  # the largest count of a group comes last, and is what stays
    kind_of[pairs[0][last]] = pairs[1][last]
    drawn = np.random.default_rng(seed).permutation(len(sizes))
    order = drawn[np.argsort(-sizes[drawn], kind="stable")]
    of_kind: dict[int, list[int]] = {}
    total = [0] * folds
    found = np.zeros(len(sizes), np.int64)
    for group, size, kind in zip(order.tolist(), sizes[order].tolist(), kind_of[order].tolist(), strict=True):
        own = of_kind.setdefault(kind, [0] * folds)
        fold = min(range(folds), key=lambda at: (own[at], total[at]))
        own[fold] += size
        total[fold] += size
        found[group] = fold
    return found[groups]


def _drawn(codes: NDArray[np.integer[Any]], shares: Shares, seed: int, *, least: int) -> NDArray[np.int8]:
    """Every code's rows in the same shares, to a row, at random within it; a code of too few rows to share trains.

    ``least`` rows of every code go to each share above 0.
    """
    sizes = np.bincount(codes)
    few = sizes < sum(share > 0 for share in shares)
    # rounded over all codes so far, not one by one: many small codes would each round to none
    reached = np.cumsum(np.where(few, 0, sizes))
    takes = [np.diff(np.rint(reached * share), prepend=0).astype(np.int64) for share in shares[1:]]
    takes = [
        np.where(few | (share == 0), 0, np.maximum(take, least)) for take, share in zip(takes, shares[1:], strict=True)
    ]
    validation = np.minimum(takes[0], np.maximum(sizes - 1, 0))
    test = np.minimum(takes[1], np.maximum(sizes - 1 - validation, 0))
    order = np.random.default_rng(seed).permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]
    ordered = codes[order]
    place = np.arange(len(codes)) - (np.cumsum(sizes) - sizes)[ordered]
    parts = np.zeros(len(codes), np.int8)
    parts[order] = np.where(
        place < validation[ordered], VALIDATION, np.where(place < (validation + test)[ordered], TEST, TRAIN)
    )
    return parts


def _hashed(text: c.StringArray, shares: Shares) -> NDArray[np.int8]:
    """By xxh3_64 of the text form, so that a row stays where it is whatever is added; a missing value has one hash too."""
    encoded = text.dictionary_encode(null_encoding="encode")
    values = c.as_bytes(encoded.dictionary)
    digests = [xxhash.xxh3_64_intdigest(MISSING if value is None else value) for value in values]
    place = np.array(digests, np.uint64) / 2.0**64
    part = np.where(place < shares[0], TRAIN, np.where(place < shares[0] + shares[1], VALIDATION, TEST))
    if shares[2] == 0:
        part = np.where(part == TEST, VALIDATION if shares[1] else TRAIN, part)  # the last bit of a sum of shares
    result: NDArray[np.int8] = part.astype(np.int8)[c.values(encoded.indices)]
    return result


def _fixed(text: c.StringArray, where: str, column: str, used: NDArray[np.bool_] | None) -> NDArray[np.int8]:
    encoded = text.dictionary_encode(null_encoding="encode")
    values = encoded.dictionary.to_pylist()
    part = np.array([-1 if value is None else _WORDS.get(value.lower(), -1) for value in values], np.int8)
    parts: NDArray[np.int8] = part[c.values(encoded.indices)]
    if used is not None:
        parts[~used] = TRAIN
    if (parts < 0).any():
        row = int((parts < 0).argmax())
        given = text[row].as_py()
        said = "the cell is empty" if given is None else f"{c.shown(given)} is no split"
        c.refuse(where, column, row, f"{said}; write 0, 1 or 2, or train, validation or test")
    return parts
