"""Which rows train, which validate, which test."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from cachestore.errors import DataError
from trainer.features import cells as c
from trainer.schema.preparation import FixedSplit, HashSplit, RandomSplit, SplitConfig, StratifySplit

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
    cells: c.Column | None,
    rows: int,
    seed: int,
    where: str,
    *,
    used: NDArray[np.bool_] | None = None,
) -> NDArray[np.int8]:
    """0, 1 or 2 for every row. ``cells`` is the column that the split names, None for a random one.

    A row that ``used`` (rows,) excludes may have no split in a fixed one: nothing follows from it.

    The same rows, config and seed give the same split. Raises DataError when no row would train, or a share that was
    asked for would be empty.
    """
    if isinstance(config, RandomSplit):
        shares, column = config.probabilities, ""
        codes = np.zeros(rows, np.int64)
        parts = _drawn(codes, shares, seed if config.seed is None else config.seed, least=1)
    else:
        if cells is None:
            raise ValueError(f"a split by {config.column!r} needs that column's cells")
        text, column = c.texts(cells, where, config.column), f", column {config.column!r}"
        match config:
            case FixedSplit():
                shares, parts = (1.0, 0.0, 0.0), _fixed(text, where, config.column, used)
            case StratifySplit():
                codes = c.values(text.dictionary_encode(null_encoding="encode").indices)
                shares, parts = config.probabilities, _drawn(codes, config.probabilities, seed, least=0)
            case HashSplit():
                shares, parts = config.probabilities, _hashed(text, config.probabilities)
    counts = np.bincount(parts, minlength=3)
    for name, share, count in zip(_NAMES, shares, counts, strict=True):
        if share > 0 and count == 0:
            raise DataError(
                f"{where}{column}: the {config.type} split of {rows} rows leaves none for {name}. Give more data, "
                "change preprocessing.split, or give the files of the other splits"
            )
    return parts


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
