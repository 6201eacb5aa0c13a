"""Curves of predictions: ROC, precision and recall. Each equals scikit-learn's at the points it keeps."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
_POINTS: Final = 200  # of a curve: as many as a plot can show


def roc(scores: NDArray[Any], is_true: NDArray[np.bool_]) -> tuple[Floats, Floats, float]:
    """False and true positive rates, from (0, 0) to (1, 1), over falling thresholds, equal scores being one step; the area.

    Fawcett 2006, An introduction to ROC analysis, algorithm 1. Both classes must occur.
    """
    true, false = _cumulated(scores, is_true)
    x = np.concatenate([[0.0], false / false[-1]])
    y = np.concatenate([[0.0], true / true[-1]])
    return (*_thinned(x, y), float(np.trapezoid(y, x)))


def precision_recall(scores: NDArray[Any], is_true: NDArray[np.bool_]) -> tuple[Floats, Floats, float]:
    """Recall and precision over falling thresholds, and the average precision, the sum of precision × the gain in recall.

    Scikit-learn's average_precision_score has the same formula. A true row must occur.
    """
    true, false = _cumulated(scores, is_true)
    recall, precision = true / true[-1], true / (true + false)
    average = float(np.sum(np.diff(recall, prepend=0.0) * precision))
    return (*_thinned(np.concatenate([[0.0], recall]), np.concatenate([[precision[0]], precision])), average)


def _cumulated(scores: NDArray[Any], is_true: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """True and false rows at or above each distinct score, from the highest down."""
    order = np.argsort(-scores)
    last = np.flatnonzero(np.diff(scores[order], append=np.nan))
    true = np.cumsum(is_true[order], dtype=np.float64)[last]
    return true, last + 1 - true


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most so many points, with those at the ends."""
    if len(x) <= _POINTS:
        return x, y
    # even along the length of the curve, so that steep parts keep their shape
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    places = np.unique(np.searchsorted(length, np.linspace(0, length[-1], _POINTS)).clip(0, len(x) - 1))
    return x[places], y[places]
