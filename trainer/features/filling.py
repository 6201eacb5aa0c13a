"""What stands in for a missing cell."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", np.float64, np.int64)


def fill(
    values: NDArray[Value], present: NDArray[np.bool_], strategy: str, stand_in: float | None
) -> tuple[NDArray[Value], NDArray[np.bool_]]:
    """Values (rows,) with every cell filled, and a mask (rows,) of the rows to keep.

    ``bfill`` and ``ffill`` take the next or the last cell that is there, in dataset order; at the end without one, the
    nearest on the other side. ``stand_in`` is used by the other strategies, and by those two where no cell is there.
    """
    if present.all():
        return values, present
    if strategy == "drop_row":
        return np.where(present, values, 0).astype(values.dtype), present
    if strategy in ("bfill", "ffill") and present.any():
        filled = values[_nearest(present, forward=strategy == "ffill")]
    else:
        if stand_in is None:
            raise ValueError(f"{strategy} has nothing to fill with")
        filled = np.where(present, values, stand_in).astype(values.dtype)
    return filled, np.ones(len(values), np.bool_)


def _nearest(present: NDArray[np.bool_], *, forward: bool) -> NDArray[np.int64]:
    """The row each row takes its value from."""
    if not forward:
        return len(present) - 1 - _nearest(present[::-1], forward=True)[::-1]
    rows = np.where(present, np.arange(len(present)), -1)
    last = np.maximum.accumulate(rows)
    return np.where(last < 0, int(present.argmax()), last)
