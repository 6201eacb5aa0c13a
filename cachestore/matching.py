"""Which rows of one sequence are which rows of another: kept in order, moved, changed, added, removed. Pure functions of numbers.

In the manner of a patience diff: rows that occur once on both sides anchor the rest, gaps between anchors are matched from both ends
inwards, and where rows repeat, the rows that follow them tell them apart. O(n log n) in time, some 100 bytes per row that is not
in a common beginning or end.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Codes = NDArray[np.uint64]

_WIDTHS: Final = (1, 4, 16, 64, 1)  # rows that tell a row from others; anchors make others unique, so 1 comes again
_ODD, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Matched:
    """Row numbers from 0. ``moved`` and ``changed`` are pairs (n, 2): the row before, the row after."""

    kept: int
    moved: Rows
    changed: Rows
    removed: Rows
    added: Rows


def match(old: Codes, new: Codes) -> Matched:
    """Match the rows of two sequences, each row given by a number; equal numbers are equal rows.

    A row that occurs once has moved when it is on both sides, but not in order. One that occurs more often has done so only where
    no row took its place: where as many are left on both sides between the same kept rows, they are paired as changed. What is
    left at last is paired as changed too, as far as it goes.
    """
    kept = _grown(old, new, (np.empty(0, np.int64), np.empty(0, np.int64)))
    left = _others(len(old), kept[0]), _others(len(new), kept[1])
    inner = old[left[0]], new[left[1]]  # all but a common beginning and end
    common = np.flatnonzero(np.isin(inner[0], inner[1])), np.flatnonzero(np.isin(inner[1], inner[0]))
    found = _kept(inner[0][common[0]], inner[1][common[1]])
    kept = _merged(kept[0], left[0][common[0][found[0]]]), _merged(kept[1], left[1][common[1][found[1]]])
    left = _others(len(old), kept[0]), _others(len(new), kept[1])
    moved: list[Rows] = []
    changed: list[Rows] = []

    def take(pairs: tuple[Rows, Rows], into: list[Rows]) -> None:
        nonlocal left
        into.append(np.stack([left[0][pairs[0]], left[1][pairs[1]]], axis=1))
        left = np.delete(left[0], pairs[0]), np.delete(left[1], pairs[1])

    def gaps() -> tuple[Codes, Codes]:
        before, after = (np.searchsorted(rows, others) for rows, others in zip(kept, left, strict=True))
        return before.astype(np.uint64), after.astype(np.uint64)

    if not len(left[0]) or not len(left[1]):
        nothing = np.empty((0, 2), np.int64)
        return Matched(len(kept[0]), nothing, nothing, *left)
    alone = np.isin(old[left[0]], _once(old)[0]), np.isin(new[left[1]], _once(new)[0])
    once = [np.flatnonzero(side) for side in alone]
    pairs = _pairs(_once(old[left[0][once[0]]]), _once(new[left[1][once[1]]]))
    take((once[0][pairs[0]], once[1][pairs[1]]), moved)

    before, after = gaps()
    counts = [np.bincount(side.astype(np.int64), minlength=len(kept[0]) + 1) for side in (before, after)]
    even = counts[0] == counts[1]
    both = [np.flatnonzero(even[side.astype(np.int64)]) for side in (before, after)]
    differ = old[left[0][both[0]]] != new[left[1][both[1]]]
    take((both[0][differ], both[1][differ]), changed)

    take(_pairs(_numbered(old[left[0]]), _numbered(new[left[1]])), moved)
    before, after = gaps()
    take(_pairs(_numbered(before), _numbered(after)), changed)
    return Matched(len(kept[0]), _by_first(moved), _by_first(changed), *left)


def _kept(old: Codes, new: Codes) -> tuple[Rows, Rows]:
    """Rows kept in order: their positions in ``old`` and in ``new``, increasing in both."""
    kept = _grown(old, new, (np.empty(0, np.int64), np.empty(0, np.int64)))
    for width in _WIDTHS:
        if len(kept[0]) == min(len(old), len(new)):
            return kept
        left, codes = _in_gaps(old, new, kept, width)
        kept = _joined(kept, left, _pairs(_once(codes[0]), _once(codes[1])))
        kept = _grown(old, new, kept)
    left, codes = _in_gaps(old, new, kept, 1)
    return _joined(kept, left, _pairs(_numbered(codes[0]), _numbered(codes[1])))


def _grown(old: Codes, new: Codes, kept: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
    """With the rows that are equal at the beginning and at the end of each gap between kept rows."""
    for forwards in (True, False):
        begins = [np.append(0, rows + 1) for rows in kept]
        ends = [np.append(rows, len(codes)) for rows, codes in zip(kept, (old, new), strict=True)]
        length = np.minimum(ends[0] - begins[0], ends[1] - begins[1])
        first = np.repeat(np.cumsum(length) - length, length)  # where each gap begins in what follows
        step = np.arange(len(first)) - first
        at = [
            np.repeat(begin, length) + step if forwards else np.repeat(end, length) - 1 - step
            for begin, end in zip(begins, ends, strict=True)
        ]
        differing = np.append(0, np.cumsum(old[at[0]] != new[at[1]]))
        equal = differing[1:] == differing[first]  # none differs from the beginning of the gap to here
        kept = _merged(kept[0], at[0][equal]), _merged(kept[1], at[1][equal])
    return kept


def _in_gaps(
    old: Codes, new: Codes, kept: tuple[Rows, Rows], width: int
) -> tuple[tuple[Rows, Rows], tuple[Codes, Codes]]:
    """The rows that are not kept, and for each a number for its gap, its content and that of the ``width`` - 1 rows after it."""
    left = _others(len(old), kept[0]), _others(len(new), kept[1])
    codes = [
        _mixed(_windows(sequence, width)[rows], np.searchsorted(anchors, rows).astype(np.uint64))
        for sequence, anchors, rows in zip((old, new), kept, left, strict=True)
    ]
    return left, (codes[0], codes[1])


def _joined(kept: tuple[Rows, Rows], left: tuple[Rows, Rows], pairs: tuple[Rows, Rows]) -> tuple[Rows, Rows]:
    """With as many of the pairs of left rows, which share their gaps, as are in order."""
    order = np.argsort(pairs[0])
    before, after = left[0][pairs[0][order]], left[1][pairs[1][order]]
    chosen = _increasing(after)
    return _merged(kept[0], before[chosen]), _merged(kept[1], after[chosen])


def _increasing(numbers: Rows) -> Rows:
    """Positions of a longest increasing subsequence."""
    if bool((numbers[1:] > numbers[:-1]).all()):
        return np.arange(len(numbers))
    tails: list[int] = []
    last: list[int] = []
    previous: list[int] = []
    for at, number in enumerate(numbers.tolist()):
        length = bisect_left(tails, number)
        previous.append(last[length - 1] if length else -1)
        if length == len(tails):
            tails.append(number)
            last.append(at)
        else:
            tails[length], last[length] = number, at
    chosen = np.empty(len(tails), np.int64)
    at = last[-1]
    for place in range(len(tails) - 1, -1, -1):
        chosen[place], at = at, previous[at]
    return chosen


def _pairs(old: tuple[Codes, Rows], new: tuple[Codes, Rows]) -> tuple[Rows, Rows]:
    """Where distinct numbers, given with their positions, are on both sides: the positions here and there."""
    _, here, there = np.intersect1d(old[0], new[0], assume_unique=True, return_indices=True)
    return old[1][here], new[1][there]


def _once(codes: Codes) -> tuple[Codes, Rows]:
    """The numbers that occur once, and where."""
    distinct, first, counts = np.unique(codes, return_index=True, return_counts=True)
    return distinct[counts == 1], first[counts == 1]


def _numbered(codes: Codes) -> tuple[Codes, Rows]:
    """Every number made distinct by how often it occurred before, and where it is."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    at = np.arange(len(ordered))
    new = np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]
    return _mixed(ordered, (at - np.maximum.accumulate(np.where(new, at, 0))).astype(np.uint64)), order


def _windows(codes: Codes, width: int) -> Codes:
    """Per row a number for it and the ``width`` - 1 rows after it; ``width`` is a power of two."""
    reach = 1
    while reach < width:
        following = np.zeros_like(codes)
        following[: max(len(codes) - reach, 0)] = codes[reach:]
        codes = _mixed(codes, following)
        reach *= 2
    return codes


def _mixed(codes: Codes, others: Codes) -> Codes:
    mixed = (codes ^ (codes >> np.uint64(31))) * _ODD + others
    mixed ^= mixed >> np.uint64(29)
    mixed *= _MIX
    return mixed ^ (mixed >> np.uint64(32))


def _by_first(pairs: list[Rows]) -> Rows:
    found = np.concatenate(pairs)
    return found[np.argsort(found[:, 0])]


def _merged(rows: Rows, others: Rows) -> Rows:
    return np.sort(np.append(rows, others), kind="stable") if len(others) else rows


def _others(count: int, rows: Rows) -> Rows:
    left = np.ones(count, np.bool_)
    left[rows] = False
    return np.flatnonzero(left)
