"""How many tokens go through a model at once: batches of texts of like length, and a budget found by measuring. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Final

_ROUNDS: Final = 4  # batches timed per candidate
_ENOUGH: Final = 4  # batches in a window that is worth measuring on
_CLEARLY: Final = 1.05  # how much faster another budget must be than the default: less may be chance
_MEMORY_SHARE: Final = 16  # activations of a batch get this part of the memory


class Budget:
    """The most tokens of a padded batch: given, or the fastest of the default, half and twice of it.

    Measuring costs nothing but the slower batches: candidates take turns on real ones, there and back, so that each
    gets batches of every length. What is chosen changes no vector beyond rounding.
    """

    def __init__(self, default: int, *, fixed: bool = False, most: int | None = None) -> None:
        if most is not None:
            default = max(1, min(default, most))
        others = [] if fixed else [size for size in (default // 2, 2 * default) if 0 < size <= (most or size)]
        sizes = [default, *others]
        self._default = default
        self._measured = dict.fromkeys(sizes, (0, 0.0))  # tokens and seconds
        self._turns = cycle([*sizes, *reversed(sizes)])
        self._left = _ROUNDS * len(sizes) if others else 0
        self._warm = False
        self.tokens = next(self._turns)

    @property
    def measuring(self) -> bool:
        """Whether the next batch should be timed."""
        return self._left > 0

    def on(self, tokens: int) -> Budget:
        """The budget for a window of so many tokens: the default for a short one while it is not known which is fast.

        So what is encoded a few texts at a time comes out the same to the bit.
        """
        short = self.measuring and tokens < _ENOUGH * self._default
        return Budget(self._default, fixed=True) if short else self

    def took(self, tokens: int, seconds: float) -> None:
        """A full batch within ``self.tokens`` had that many tokens without padding, and took so long."""
        if not self.measuring:
            return
        if not self._warm:  # the first one also pays for what libraries set up
            self._warm = True
            return
        had, before = self._measured[self.tokens]
        self._measured[self.tokens] = had + tokens, before + seconds
        self._left -= 1
        self.tokens = next(self._turns) if self._left else self._fastest()

    def too_much(self, tokens: int) -> None:
        """There was no room for a batch of so many tokens: from now on at most half of it."""
        self._left = 0
        self.tokens = max(1, min(self.tokens, tokens // 2))

    def _fastest(self) -> int:
        speeds = {size: had / max(seconds, 1e-9) for size, (had, seconds) in self._measured.items()}
        best = max(speeds, key=speeds.__getitem__)
        return best if speeds[best] > _CLEARLY * speeds[self._default] else self._default


def batches(lengths: Sequence[int], budget: Budget) -> Iterator[list[int]]:
    """Rows of each batch, longest first, so that little is padding; padded, a batch holds at most ``budget.tokens``."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    start = 0
    while start < len(order):
        end = start + max(1, budget.tokens // lengths[order[start]])
        yield order[start:end]
        start = end


def windows(rows: int, first: int, size: int) -> list[tuple[int, int]]:
    """Ranges of rows that are tokenised together; a short one first, so that the model need not wait long."""
    starts = [0, *range(first if rows > 2 * first else size, rows, size)]
    return list(zip(starts, [*starts[1:], rows], strict=True))


def tokens_in_memory(bytes_per_token: int) -> int:
    """How many tokens fit in the share of this computer's memory that a batch may take."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory // (_MEMORY_SHARE * bytes_per_token)
