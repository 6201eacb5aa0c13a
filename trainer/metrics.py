"""Metrics of a whole split, computed where its tensors are. Each equals scikit-learn's of the same name.

A metric that the rows do not define (no rows, one class for roc_auc, constant targets for r2) is NaN.
"""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

COMBINED: Final = "combined"  # where an output's name stands: the weighted sum of the losses of several outputs
Direction: TypeAlias = Literal["max", "min"]

DIRECTIONS: Final[dict[str, Direction]] = {
    "loss": "min",
    "accuracy": "max",
    "hits_at_k": "max",
    "f1_macro": "max",
    "roc_auc": "max",
    "precision": "max",
    "recall": "max",
    "f1": "max",
    "mean_squared_error": "min",
    "mean_absolute_error": "min",
    "root_mean_squared_error": "min",
    "r2": "max",
}


def better(metric: str, value: float, than: float | None) -> bool:
    """Whether ``value`` improves on ``than``; anything improves on None."""
    if than is None:
        return True
    return value > than if DIRECTIONS[metric] == "max" else value < than


def rank(scores: Tensor, targets: Tensor) -> Tensor:
    """How many classes come before the right one, int64 (rows,); of equal scores the lower class index comes first."""
    right = scores.gather(1, targets[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return ((scores > right) | ((scores == right) & before)).sum(dim=1)


def accuracy(predicted: Tensor, targets: Tensor) -> float:
    """The share of rows predicted right."""
    return _mean(predicted == targets)


def hits_at_k(ranks: Tensor, k: int) -> float:
    """The share of rows whose class is among the ``k`` best-scored."""
    return _mean(ranks < k)


def f1_macro(predicted: Tensor, targets: Tensor, classes: int) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN), over the classes that occur in either tensor."""
    right = torch.bincount(targets[predicted == targets], minlength=classes).double()
    both = torch.bincount(predicted, minlength=classes) + torch.bincount(targets, minlength=classes)
    occurs = both > 0
    return _mean(2 * right[occurs] / both[occurs])


def binary(predicted: Tensor, targets: Tensor) -> dict[str, float]:
    """Accuracy, and precision, recall and f1 of true (0 where their denominator is); both tensors are bool (rows,)."""
    right = _count(predicted & targets)
    said, is_true = _count(predicted), _count(targets)
    return {
        "accuracy": _mean(predicted == targets),
        "precision": right / said if said else 0.0,
        "recall": right / is_true if is_true else 0.0,
        "f1": 2 * right / (said + is_true) if said + is_true else 0.0,
    }


def roc_auc(scores: Tensor, targets: Tensor) -> float:
    """The chance that a true row scores above a false one, ties counting half (Mann and Whitney 1947)."""
    is_true = targets > 0.5
    positives = _count(is_true)
    negatives = len(is_true) - positives
    if not positives or not negatives:
        return math.nan
    _, group, size = torch.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = size.cumsum(0).double() - (size.double() - 1) / 2  # 1-based, equal scores share theirs
    ranks = mean_rank[group][is_true].sum().item()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def regression(values: Tensor, targets: Tensor) -> dict[str, float]:
    """Squared and absolute error, and the share of the targets' variance explained."""
    error = values.double() - targets.double()
    squared = _mean(error.square())
    spread = _mean((targets.double() - targets.double().mean()).square())
    return {
        "mean_squared_error": squared,
        "mean_absolute_error": _mean(error.abs()),
        "root_mean_squared_error": math.sqrt(squared),
        "r2": 1 - squared / spread if spread > 0 else math.nan,
    }


def _mean(values: Tensor) -> float:
    return float(values.double().mean().item())


def _count(values: Tensor) -> int:
    return int(values.sum().item())
