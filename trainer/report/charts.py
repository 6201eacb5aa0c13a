"""The figures of a run: how training went, and what each output predicts."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainer.metrics import COMBINED
from trainer.report.curves import precision_recall, roc
from trainer.report.figures import Bars, Figure, Histogram, Matrix, Plot, Series
from trainer.report.files import RunFiles
from trainer.report.kept import Outcome
from trainer.report.numbers import short

_MATRIX_CLASSES: Final = 80
_CURVE_CLASSES: Final = 5
_POINTS: Final = 1500
_BAR_CLASSES: Final = 20
_FIRST: Final = {  # the metrics to show of a type, first to last
    "category": ("accuracy", "f1_macro", "balanced_accuracy", "hits_at_k"),
    "binary": ("roc_auc", "accuracy", "f1", "average_precision"),
    "number": ("mean_absolute_error", "root_mean_squared_error", "r2"),
}


def headline(kind: str, metrics: Collection[str], chosen: str | None = None) -> list[str]:
    """The names of up to four of ``metrics`` that say most of an output, the one training was steered by first."""
    order = dict.fromkeys([*([chosen] if chosen else []), *_FIRST.get(kind, ()), *metrics])
    names = [name for name in order if name in metrics]
    return [name for name in names if name != "loss" or chosen == "loss"][:4] or names[:1]


def training(run: RunFiles) -> list[Figure]:
    """Losses and the metrics that matter by epoch, and the learning rate where it changes."""
    figures: list[Figure] = []
    summary = run.summary
    mark = None
    if summary["rows"].get("validation"):
        mark = (float(summary["best_epoch"]), f"kept: epoch {summary['best_epoch']}")
    kinds = {output["name"]: output["type"] for output in run.config["output_features"]}
    outputs = list(run.curves["train"].values) if "train" in run.curves else []
    for output in sorted(outputs, key=lambda name: name != COMBINED):
        label = "all outputs" if output == COMBINED else output
        steering = summary["validation_metric"] if summary["validation_field"] == output else None
        names = ["loss"]
        if output != COMBINED:
            names += headline(kinds.get(output, ""), run.curves["train"].values[output], steering)[:1]
        figures += [by_epoch(run, output, name, label, mark) for name in dict.fromkeys(names)]
    rates = run.learning_rates
    if len(set(rates)) > 1:
        epochs = run.curves["train"].epochs
        figures.append(Plot("Learning rate", "epoch", "learning rate", [Series("", epochs, rates)], whole_x=True))
    return figures


def by_epoch(run: RunFiles, output: str, metric: str, label: str, mark: tuple[float, str] | None) -> Plot:
    """One metric of an output in training and validation."""
    series = []
    for color, split in enumerate(("train", "validation")):
        found = run.curves.get(split)
        values = found.values.get(output, {}).get(metric) if found else None
        if found and values:
            points = [
                (epoch, value) for epoch, value in zip(found.epochs, values, strict=True) if not math.isnan(value)
            ]
            series.append(Series(split, [x for x, _ in points], [y for _, y in points], color))
    return Plot(
        f"{spoken(metric)[0].upper()}{spoken(metric)[1:]}: {label}",
        "epoch",
        spoken(metric),
        series,
        mark=mark,
        whole_x=True,
    )


def spoken(metric: str) -> str:
    """A metric's name for people: ``mean absolute error``, ``ROC AUC``, ``F1 macro``."""
    known = {
        "roc_auc": "ROC AUC",
        "r2": "R²",
        "ece": "calibration error",
        "mcc": "MCC",
        "brier": "Brier score",
        "hits_at_k": "hits at k",
    }
    return known.get(metric, metric.replace("_", " ").replace("f1", "F1"))


def outcomes(kind: str, state: Mapping[str, Any], outcome: Outcome, evaluation: Mapping[str, Any]) -> list[Figure]:
    """What an output predicts; ``evaluation`` is that of evaluation.json, empty where there is none."""
    figures: list[Figure] = []
    confusion = evaluation.get("confusion")
    if confusion and confusion["counts"] is not None:
        figures.append(matrix(confusion["labels"], np.array(confusion["counts"], np.int64)))
    match kind:
        case "binary":
            figures += _binary(state["labels"], outcome)
        case "category":
            figures += _category(state["vocabulary"], outcome)
        case "number":
            figures += _number(outcome)
        case "vector":
            figures.append(_distances(outcome))
    # a model that diverged has rows without a probability
    bins = [one for one in evaluation.get("calibration") or () if one["confidence"] is not None]
    if bins:
        x_label, y_label = "probability of the prediction", "share that is right"
        if kind == "binary":
            x_label, y_label = (f"{what} {state['labels'][1]!r}" for what in ("probability of", "share that is"))
        figures.insert(-1, _calibration(bins, x_label, y_label))
    return figures


def targets(name: str, kind: str, state: Mapping[str, Any], by_split: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """How the targets of an output are spread over the splits."""
    if not by_split:
        return None
    if kind == "number":
        edges = next(iter(by_split.values()))["edges"]
        shares = {split: _shares(found["counts"]) for split, found in by_split.items()}
        return Histogram(f"Values: {name}", name, "share of rows", edges, shares)
    labels: Sequence[str] = state.get("labels") or state.get("vocabulary") or ()
    counts = {split: np.array(found["counts"]) for split, found in by_split.items()}
    first = next(iter(counts.values()))
    order = np.asarray(np.argsort(-first, kind="stable"), np.int64)
    one, several = ("label", "labels") if kind == "set" else ("class", "classes")
    note = ""
    if len(order) > _BAR_CLASSES:
        half = _BAR_CLASSES // 2
        order = np.concatenate([order[:half], order[-half:]])
        note = f"The {half} {several} with most rows and the {half} with fewest, of {len(labels)}."
    chosen = [labels[place] for place in order.tolist()]
    values = {split: found[order].tolist() for split, found in counts.items()}
    return Bars(f"Rows by {one}: {name}", "rows", chosen, values, note)


def matrix(labels: Sequence[str], counts: NDArray[np.int64]) -> Matrix:
    """A confusion matrix; of very many classes, those with most mistakes."""
    totals = counts.sum(axis=1)
    note = ""
    chosen = np.argsort([_number_of(label) for label in labels], kind="stable")
    if len(labels) > _MATRIX_CLASSES:
        wrong = totals - np.diag(counts)
        chosen = np.sort(np.argsort(-wrong, kind="stable")[:40])
        note = f"The 40 classes with most mistakes, of {len(labels)}."
    return Matrix(
        "Confusion matrix",
        [labels[place] for place in chosen.tolist()],
        counts[np.ix_(chosen, chosen)].tolist(),
        note=(note + " Shade: share of the rows of the true class.").strip(),
        totals=totals[chosen].tolist(),
    )


def _binary(labels: Sequence[str], outcome: Outcome) -> list[Figure]:
    figures: list[Figure] = []
    is_true = outcome.target > 0
    scores = outcome.scores
    if scores is None:
        return figures
    if 0 < is_true.sum() < len(is_true):
        x, y, area = roc(scores, is_true)
        recall, precision, average = precision_recall(scores, is_true)
        share = float(is_true.mean())
        figures += [
            _roc_plot([Series(f"area {area:.4f}", x, y)]),
            _precision_plot([Series(f"average precision {average:.4f}", recall, precision)], share),
        ]
    edges = np.linspace(0, 1, 26)
    counts = {
        f"true {label!r}": np.histogram(scores[is_true == bool(place)], edges)[0].tolist()
        for place, label in enumerate(labels)
    }
    figures.append(Histogram("Scores", f"probability of {labels[1]!r}", "rows", edges.tolist(), counts))
    return figures


def _category(labels: Sequence[str], outcome: Outcome) -> list[Figure]:
    figures: list[Figure] = []
    if (scores := outcome.scores) is not None:
        scores = scores.astype(np.float32)
        every = np.zeros(scores.shape, np.bool_)
        every[np.arange(len(scores)), outcome.target] = True
        x, y, area = roc(scores.ravel(), every.ravel())
        recall, precision, average = precision_recall(scores.ravel(), every.ravel())
        roc_series = [Series(f"all classes, area {area:.4f}", x, y)]
        recall_series = [Series(f"all classes, average precision {average:.4f}", recall, precision)]
        if len(labels) <= _CURVE_CLASSES:
            for color, label in enumerate(labels, 1):
                is_true = every[:, color - 1]
                if 0 < is_true.sum() < len(is_true):
                    x, y, area = roc(scores[:, color - 1], is_true)
                    roc_series.append(Series(f"{label}: {area:.4f}", x, y, color))
                    recall, precision, average = precision_recall(scores[:, color - 1], is_true)
                    recall_series.append(Series(f"{label}: {average:.4f}", recall, precision, color))
        figures += [_roc_plot(roc_series), _precision_plot(recall_series, None)]
    if outcome.probability is not None:
        right = outcome.target == outcome.predicted
        edges = np.linspace(0, 1, 21)
        counts = {
            name: np.histogram(outcome.probability[right == is_right], edges)[0].tolist()
            for name, is_right in (("right", True), ("wrong", False))
        }
        figures.append(Histogram("Confidence", "probability of the prediction", "rows", edges.tolist(), counts))
    return figures


def _number(outcome: Outcome) -> list[Figure]:
    target = outcome.target.astype(np.float64)
    predicted = outcome.predicted.astype(np.float64)
    error = predicted - target
    step = -(-len(target) // _POINTS)
    note = f"{len(target[::step]):,} of {len(target):,} rows." if step > 1 else ""
    low, high = float(min(target.min(), predicted.min())), float(max(target.max(), predicted.max()))
    ends = np.quantile(error, [0.005, 0.995])
    limit = float(max(abs(ends))) or 1.0
    edges = np.linspace(-limit, limit, 41)
    outside = int((np.abs(error) > limit).sum())
    told = f"{outside:,} rows lie further out. " if outside else ""
    return [
        Plot(
            "Predicted and true",
            "true",
            "predicted",
            [
                Series("", [low, high], [low, high], 0, "faint"),
                Series("", target[::step].tolist(), predicted[::step].tolist(), 0, "points"),
            ],
            note=note,
        ),
        Histogram(
            "Residuals",
            "predicted − true",
            "rows",
            edges.tolist(),
            {"": np.histogram(error, edges)[0].tolist()},
            note=f"{told}Mean {short(float(error.mean()))}, standard deviation {short(float(error.std()))}.",
        ),
        Plot(
            "Residuals by prediction",
            "predicted",
            "predicted − true",
            [
                Series("", [float(predicted.min()), float(predicted.max())], [0.0, 0.0], 0, "faint"),
                Series("", predicted[::step].tolist(), error[::step].tolist(), 1, "points"),
            ],
            note=note,
        ),
    ]


def _roc_plot(series: Sequence[Series]) -> Plot:
    guide = Series("", [0.0, 1.0], [0.0, 1.0], 0, "faint")
    return Plot("ROC", "false positive rate", "true positive rate", [guide, *series], (0, 1), (0, 1))


def _precision_plot(series: Sequence[Series], share: float | None) -> Plot:
    guide = [] if share is None else [Series("", [0.0, 1.0], [share, share], 0, "faint")]
    return Plot("Precision and recall", "recall", "precision", [*guide, *series], (0, 1), (0, 1))


def _calibration(bins: Sequence[Mapping[str, Any]], x_label: str, y_label: str) -> Plot:
    rows = sum(one["rows"] for one in bins)
    error = sum(one["rows"] * abs(one["accuracy"] - one["confidence"]) for one in bins) / rows
    series = [
        Series("", [0.0, 1.0], [0.0, 1.0], 0, "faint"),
        Series("", [one["confidence"] for one in bins], [one["accuracy"] for one in bins], 0),
    ]
    note = f"On the diagonal, probabilities can be believed. The mean distance from it is {short(error)}."
    return Plot("Calibration", x_label, y_label, series, (0, 1), (0, 1), note=note)


def _distances(outcome: Outcome) -> Histogram:
    distance = np.linalg.norm(outcome.predicted.astype(np.float64) - outcome.target, axis=1)
    counts, edges = np.histogram(distance, 30)
    return Histogram(
        "Distances", "distance of the predicted from the true vector", "rows", edges.tolist(), {"": counts.tolist()}
    )


def _number_of(label: str) -> float:
    """Classes that are numbers stand in their order; others, as they came, behind them."""
    try:
        return float(label)
    except ValueError:
        return math.inf


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]
