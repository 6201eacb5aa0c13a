"""Metrics of a whole split, computed where its tensors are. Each equals scikit-learn's of the same name.

Every one takes ``weights``, float64 (resamples, rows), how often each row counts: a row of ones for the split as it is, the
counts of a bootstrap for its resamples; and gives one value per resample, float64 (resamples,). A metric that the rows do
not define (no rows, one class for roc_auc, constant targets for r2) is NaN.
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
    "f1_micro": "max",
    "f1_weighted": "max",
    "balanced_accuracy": "max",
    "mcc": "max",
    "roc_auc": "max",
    "average_precision": "max",
    "log_loss": "min",
    "brier": "min",
    "ece": "min",
    "precision": "max",
    "recall": "max",
    "specificity": "max",
    "f1": "max",
    "mean_squared_error": "min",
    "mean_absolute_error": "min",
    "root_mean_squared_error": "min",
    "mean_absolute_percentage_error": "min",
    "root_mean_squared_percentage_error": "min",
    "r2": "max",
    "jaccard": "max",
    "cosine_similarity": "max",
}
ALIASES: Final[dict[str, str]] = {  # other spellings, Ludwig's among them
    "accuracy_micro": "accuracy",
    "R2": "r2",
    "mse": "mean_squared_error",
    "mae": "mean_absolute_error",
    "rmse": "root_mean_squared_error",
    "mape": "mean_absolute_percentage_error",
    "rmspe": "root_mean_squared_percentage_error",
    "top_k": "hits_at_k",
    "sensitivity": "recall",
    "matthews_corrcoef": "mcc",
    "balanced_accuracy_score": "balanced_accuracy",
    "brier_score": "brier",
}
RANGES: Final[dict[str, tuple[float, float]]] = {  # of a metric's values, where they have ends: no interval goes beyond
    **{name: (0.0, 1.0) if direction == "max" else (0.0, math.inf) for name, direction in DIRECTIONS.items()},
    **dict.fromkeys(("mcc", "cosine_similarity"), (-1.0, 1.0)),
    "ece": (0.0, 1.0),
    "brier": (0.0, 2.0),  # of more than two classes
    "r2": (-math.inf, 1.0),
    "loss": (-math.inf, math.inf),
}
BINS: Final = 15
_TINY: Final = 2.220446049250313e-16  # no ratio divides by less


def better(metric: str, value: float, than: float | None) -> bool:
    """Whether ``value`` improves on ``than``; anything improves on None."""
    if than is None:
        return True
    return value > than if DIRECTIONS[metric] == "max" else value < than


def once(rows: int, device: torch.device | None = None) -> Tensor:
    """The weights of a split as it is: (1, rows) ones."""
    return torch.ones(1, rows, dtype=torch.float64, device=device)


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of one number a row (rows,)."""
    return (weights @ values.double()) / weights.sum(dim=1)


def mean_where_defined(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of one number a row (rows,), over the rows where it is not NaN."""
    defined = ~values.isnan()
    return (weights @ values.double().nan_to_num(0.0)) / (weights @ defined.double())


def counts(index: Tensor, size: int, weights: Tensor) -> Tensor:
    """How often each of ``size`` places occurs in ``index`` (rows,); (resamples, size)."""
    resamples = len(weights)
    if resamples == 1:
        return torch.bincount(index, weights=weights[0], minlength=size)[None]
    places = torch.arange(resamples, device=index.device)[:, None] * size + index
    return torch.bincount(places.flatten(), weights=weights.flatten(), minlength=resamples * size).view(-1, size)


# classes


def rank(scores: Tensor, targets: Tensor) -> Tensor:
    """How many classes come before the right one, int64 (rows,); of equal scores the lower class index comes first."""
    right = scores.gather(1, targets[:, None])
    above = torch.count_nonzero(scores > right, dim=1)
    equal = scores == right
    if int(torch.count_nonzero(equal)) == len(targets):  # no class but the right one
        return above
    before = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    return above + torch.count_nonzero(equal & before, dim=1)


class ClassCounts:
    """Of each class, (resamples, classes): rows predicted right, rows predicted as it, rows that are of it."""

    def __init__(self, predicted: Tensor, targets: Tensor, classes: int, weights: Tensor) -> None:
        hit = (predicted == targets).double()
        self.right = counts(targets, classes, weights * hit)
        self.predicted = counts(predicted, classes, weights)
        self.actual = counts(targets, classes, weights)
        self.rows = weights.sum(dim=1)

    @property
    def f1(self) -> Tensor:
        """2 TP / (2 TP + FP + FN) of each class, NaN for one that occurs neither among targets nor predictions."""
        return 2 * self.right / (self.predicted + self.actual)

    def f1_macro(self) -> Tensor:
        """The mean over the classes that occur in either tensor."""
        return self.f1.nanmean(dim=1)

    def f1_weighted(self) -> Tensor:
        """The mean over classes, each as often as it is right."""
        return (self.f1.nan_to_num(0.0) * self.actual).sum(dim=1) / self.rows

    def balanced_accuracy(self) -> Tensor:
        """The mean over the classes that occur of the share of their rows that is predicted right."""
        return (self.right / self.actual).nanmean(dim=1)

    def mcc(self) -> Tensor:
        """Gorodkin's R_K, Matthews' correlation for any number of classes; 0 where either side is one class only."""
        cross = self.right.sum(dim=1) * self.rows - (self.predicted * self.actual).sum(dim=1)
        spread = (self.rows**2 - self.predicted.square().sum(dim=1)) * (self.rows**2 - self.actual.square().sum(dim=1))
        return torch.where(spread > 0, cross / spread.clamp(min=_TINY).sqrt(), 0.0)


def ece(confidence: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Expected calibration error over 15 equal bins of confidence: Σ rows(bin) / rows · |share right - mean confidence|.

    Guo et al. 2017, equation 3; bins are open to the left, as there.
    """
    gap = counts(bins(confidence), BINS, weights * (right.double() - confidence.double()))
    return gap.abs().sum(dim=1) / weights.sum(dim=1)


def bins(confidence: Tensor) -> Tensor:
    """The bin of each row's confidence, from 0."""
    return (confidence.double() * BINS).ceil().long().clamp(1, BINS) - 1


# true and false


def binary(predicted: Tensor, targets: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of what is said, bool (rows,), and what is so; precision, recall, specificity and f1 are 0 where their denominator is."""
    both, said, so = (weights @ mask.double() for mask in (predicted & targets, predicted, targets))
    rows = weights.sum(dim=1)
    neither = rows - said - so + both
    specificity, recall = _ratio(neither, rows - so), _ratio(both, so)
    spread = (said * so * (rows - said) * (rows - so)).sqrt()
    return {
        "accuracy": (both + neither) / rows,
        "precision": _ratio(both, said),
        "recall": recall,
        "specificity": specificity,
        "f1": _ratio(2 * both, said + so),
        "balanced_accuracy": torch.where(
            so == 0, specificity, torch.where(so == rows, recall, (recall + specificity) / 2)
        ),
        "mcc": _ratio(both * rows - said * so, spread),
    }


def roc_auc(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The chance that a true row scores above a false one, ties counting half (Mann and Whitney 1947)."""
    true, false = _tied(scores, targets, weights, descending=False)
    below = false.cumsum(dim=1) - false / 2
    return (true * below).sum(dim=1) / (true.sum(dim=1) * false.sum(dim=1))


def average_precision(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The mean over true rows of the precision of what scores as high; equal scores come together. NaN without true rows."""
    true, false = _tied(scores, targets, weights, descending=True)
    said = (true + false).cumsum(dim=1)
    precision = torch.where(said > 0, true.cumsum(dim=1) / said, 0.0)
    return (true * precision).sum(dim=1) / true.sum(dim=1)


class Rankings:
    """Many rankings of the same rows at once, as of each class against the others: scores and truths, (rankings, rows) each.

    ``roc_auc`` and ``average_precision`` (rankings,) are those of the functions of these names for rows that count once.
    ``of_roc_auc`` and ``of_average_precision`` (rankings, rows): what each row adds to them when it counts a little more,
    their derivative by that row's weight times the number of rows (Efron 1982, the infinitesimal jackknife); for roc_auc
    the placements of DeLong et al. 1988, less the area.
    """

    def __init__(self, scores: Tensor, truths: Tensor) -> None:
        rows = scores.shape[1]
        ordered, order = scores.sort(dim=1)
        true = truths.gather(1, order).double()
        edge = torch.ones_like(order, dtype=torch.bool)
        edge[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        place = torch.arange(rows, device=scores.device).expand_as(order)
        first = torch.where(edge, place, 0).cummax(dim=1).values  # of the rows with an equal score
        last = torch.where(edge.roll(-1, dims=1), place, rows).flip(1).cummin(dim=1).values.flip(1)
        lower = true.cumsum(dim=1)
        true_below, true_upto = lower.gather(1, first) - true.gather(1, first), lower.gather(1, last)
        positives = true.sum(dim=1, keepdim=True)
        negatives = rows - positives
        below = (first - true_below + last + 1 - true_upto) / 2 / negatives  # false rows, ties counting half
        above = 1 - (true_below + true_upto) / 2 / positives
        area = (below * true).sum(dim=1, keepdim=True) / positives
        of_area = torch.where(true > 0, (below - area) * rows / positives, (above - area) * rows / negatives)
        said = rows - first  # rows that score as high
        precision = (positives - true_below) / said
        average = (precision * true).sum(dim=1, keepdim=True) / positives
        # a row changes the precision at every true row that scores no higher: by 1 / said if it is true, less precision / said
        gain, loss = ((true * part / said).cumsum(dim=1).gather(1, last) for part in (1.0, precision))
        of_average = (true * (precision - average + gain) - loss) * rows / positives
        self.roc_auc = area.squeeze(1)
        self.average_precision = average.squeeze(1)
        self.of_roc_auc = torch.empty_like(of_area).scatter_(1, order, of_area)
        self.of_average_precision = torch.empty_like(of_average).scatter_(1, order, of_average)


# numbers and sets


def regression(values: Tensor, targets: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Squared, absolute and relative error, and the share of the targets' variance explained.

    Relative errors are of the rows whose target is not 0: scikit-learn divides by 2e-16 there, and one such row hides all others.
    """
    wanted = targets.double()
    error = values.double() - wanted
    share = relative(error, wanted)
    squared = mean(error.square(), weights)
    centred = wanted - wanted.mean()
    spread = mean(centred.square(), weights) - mean(centred, weights).square()
    varied = spread > 1e-14 * centred.square().mean()  # the resamples of rounding errors have none
    return {
        "mean_squared_error": squared,
        "mean_absolute_error": mean(error.abs(), weights),
        "root_mean_squared_error": squared.sqrt(),
        "mean_absolute_percentage_error": mean_where_defined(share.abs(), weights),
        "root_mean_squared_percentage_error": mean_where_defined(share.square(), weights).sqrt(),
        "r2": torch.where(varied, 1 - squared / spread, math.nan),
    }


def relative(error: Tensor, targets: Tensor) -> Tensor:
    """Error / |target| in float64, of any shape; NaN where the target is 0."""
    size = targets.double().abs()
    return torch.where(size > 0, error.double() / size, math.nan)


def sets(both: Tensor, predicted: Tensor, actual: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of how many labels each row's two sets share and have (rows,); two empty sets are equal, so their jaccard is 1."""
    union = (predicted + actual - both).double()
    return {
        "jaccard": mean(torch.where(union > 0, both / union.clamp(min=1), 1.0), weights),
        "accuracy": mean(both == union, weights),
        "f1_micro": 2 * (weights @ both.double()) / (weights @ (predicted + actual).double()),
    }


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part / whole.clamp(min=_TINY), 0.0)


def _tied(scores: Tensor, targets: Tensor, weights: Tensor, *, descending: bool) -> tuple[Tensor, Tensor]:
    """The weight of true and of false rows at each distinct score, in order; (resamples, distinct scores) each."""
    ordered, order = scores.sort(descending=descending)
    if not len(ordered):
        empty = weights.new_zeros(len(weights), 0)
        return empty, empty
    group = _groups(ordered)
    size = int(group[-1].item()) + 1
    weight = weights[:, order]
    true = weight * (targets[order] > 0.5)
    if size == len(ordered):
        return true, weight - true
    return counts(group, size, true), counts(group, size, weight - true)


def _groups(ordered: Tensor) -> Tensor:
    """The place of each score among the distinct ones, from 0."""
    steps = torch.zeros(len(ordered), dtype=torch.int64, device=ordered.device)
    steps[1:] = ordered[1:] != ordered[:-1]
    return steps.cumsum(0)
