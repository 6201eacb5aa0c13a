"""What stands in for a missing cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Filled:
    """``values`` (rows,) or (rows, dim) with every cell filled. ``keep`` (rows,): not to drop. ``missing`` (rows,): filled."""

    values: NDArray[Any]
    keep: NDArray[np.bool_]
    missing: NDArray[np.bool_]


def fill(
    values: NDArray[Any], present: NDArray[np.bool_], strategy: str, stand_in: float | NDArray[Any] | None
) -> Filled:
    """``values`` (rows,) or (rows, dim), in their own dtype, with every cell filled that is not ``present`` (rows,).

    ``bfill`` and ``ffill`` take the next or the last cell that is there, in dataset order; at the end without one, the
    nearest on the other side. ``stand_in``, a value or (dim,), is used by the other strategies, and by those two where no
    cell is there.
    """
    everywhere = np.ones(len(values), np.bool_)
    if present.all():
        return Filled(values, everywhere, ~everywhere)
    there = present if values.ndim == 1 else present[:, None]
    if strategy == "drop_row":
        return Filled(np.where(there, values, 0).astype(values.dtype, copy=False), present, ~present)
    if strategy in ("bfill", "ffill") and present.any():
        filled = values[_nearest(present, forward=strategy == "ffill")]
    else:
        if stand_in is None:
            raise ValueError(f"{strategy} has nothing to fill with")
        filled = np.where(there, values, stand_in).astype(values.dtype, copy=False)
    return Filled(filled, everywhere, ~present)


def _nearest(present: NDArray[np.bool_], *, forward: bool) -> NDArray[np.int64]:
    """The row each row takes its value from."""
    if not forward:
        return len(present) - 1 - _nearest(present[::-1], forward=True)[::-1]
    rows = np.where(present, np.arange(len(present)), -1)
    last = np.maximum.accumulate(rows)
    return np.where(last < 0, int(present.argmax()), last)
