"""The final evaluation of a split: every metric with its interval, the confusion matrix, and a table of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer import bootstrap, loop, metrics
from trainer.batches import Batches
from trainer.bootstrap import Bootstrap, Estimate
from trainer.classwise import Classwise, classwise
from trainer.decoders import BinaryDecoder, Classifier, Decoder, NumberDecoder, SetDecoder
from trainer.decoders.category import CLASSWISE
from trainer.decoders.sets import LABELWISE
from trainer.metrics import COMBINED
from trainer.model import Model

LARGEST_CONFUSION = 500  # classes; of more, only the pairs most often confused are told
CONFUSED = 50


@dataclass(frozen=True)
class OutputResult:
    """One output. ``confusion``, ``classes`` and ``calibration`` are plain JSON, None or empty where they mean nothing.

    ``confusion``: {labels, counts, pairs}; rows of counts are what is so, columns what is predicted, null of many classes;
    pairs are the most frequent confusions, {actual, predicted, rows}.
    ``classes``: of each class or label {class, rows, predicted, precision, recall, f1, roc_auc, average_precision}.
    ``calibration``: of each bin of confidence with rows in it {low, high, rows, confidence, accuracy}; for a binary output,
    of the probability of true, where accuracy is the share of true rows.
    ``zero_targets``: of a number, the rows whose target is 0, which percentage errors leave out.
    """

    type: str
    metrics: Mapping[str, Estimate]
    confusion: Mapping[str, Any] | None = None
    classes: Sequence[Mapping[str, Any]] = ()
    calibration: Sequence[Mapping[str, Any]] = ()
    temperature: float | None = None
    threshold: float | None = None
    zero_targets: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN is among them."""
        return {
            "type": self.type,
            "metrics": {name: estimate.to_json() for name, estimate in self.metrics.items()},
            "confusion": self.confusion,
            "classes": list(self.classes),
            "calibration": list(self.calibration),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "zero_targets": self.zero_targets,
        }


@dataclass(frozen=True)
class FinalEvaluation:
    """The final evaluation of a split, by output feature; ``combined`` is the weighted sum of the losses of several outputs."""

    rows: int
    outputs: Mapping[str, OutputResult]
    seed: int
    combined: float | None = None

    def values(self) -> loop.Metrics:
        """Metrics without intervals, as ``loop.evaluate`` gives them, and more of them."""
        found = {
            name: {metric: estimate.value for metric, estimate in output.metrics.items()}
            for name, output in self.outputs.items()
        }
        if self.combined is not None:
            found[COMBINED] = {"loss": self.combined}
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; NaN is among them."""
        return {
            "rows": self.rows,
            "outputs": {name: output.to_json() for name, output in self.outputs.items()},
            "combined": None if self.combined is None else {"loss": self.combined},
            "interval": {
                "level": bootstrap.LEVEL,
                "method": "percentile bootstrap of rows",
                "resamples": bootstrap.RESAMPLES,
                "resampled_rows": min(self.rows, bootstrap.RESAMPLED_ROWS),
                "seed": self.seed,
            },
        }


def final(
    model: Model,
    batches: Batches,
    batch_size: int | None = None,
    mixed_precision: bool = False,
    seed: int = 0,
) -> FinalEvaluation:
    """Every metric of every output over all rows, of which there is at least one.

    What is kept of a row is a few numbers; metrics that need every probability are computed a few classes at a time.
    """
    batches = loop.encoded(model, batches, batch_size, mixed_precision)
    with loop.threads_for(0):
        return _final(model, batches, batch_size, mixed_precision, seed)


def _final(model: Model, batches: Batches, batch_size: int | None, mixed_precision: bool, seed: int) -> FinalEvaluation:
    observed: dict[str, list[dict[str, Tensor]]] = {name: [] for name in model.outputs}
    losses: dict[str, list[Tensor]] = {name: [] for name in model.outputs}
    weights: dict[str, list[Tensor]] = {name: [] for name in model.outputs}
    for batch, output in loop.outputs(model, batches, batch_size, mixed_precision):
        for name in model.outputs:
            decoder, targets = model.decoder(name), batch.targets[name]
            observed[name].append(decoder.observe(output.scores[name], targets, _rowwise(decoder)))
            losses[name].append(output.losses[name])
            weights[name].append(torch.as_tensor(decoder.loss_weight(targets)))
    resamples = Bootstrap(batches.rows, seed, batches.device)
    results: dict[str, OutputResult] = {}
    total = 0.0
    for name in model.outputs:
        decoder = model.decoder(name)
        joined = {key: torch.cat([part[key] for part in observed[name]]) for key in observed[name][0]}
        found: Classwise | None = None
        if isinstance(decoder, Classifier | SetDecoder):
            found = classwise(
                decoder,
                batches,
                lambda name=name: (  # type: ignore[misc]
                    output.scores[name] for _, output in loop.outputs(model, batches, batch_size, mixed_precision)
                ),
                batches.targets[name],
                resamples,
            )
        loss = decoder.joined_loss(*(torch.stack(parts[name]).double().cpu() for parts in (losses, weights)))
        total += loss * model.weights[name]
        results[name] = _result(decoder, joined, loss, found, resamples)
    return FinalEvaluation(batches.rows, results, seed, total if len(results) > 1 else None)


def _rowwise(decoder: Decoder) -> tuple[str, ...]:
    """The metrics that need only a few numbers a row."""
    others = {"loss"}
    if isinstance(decoder, Classifier):
        others.update(CLASSWISE)
    elif isinstance(decoder, SetDecoder):
        others.update(LABELWISE)
    return tuple(name for name in decoder.metric_names if name not in others)


def _result(
    decoder: Decoder, observed: Mapping[str, Tensor], loss: float, found: Classwise | None, resamples: Bootstrap
) -> OutputResult:
    names = _rowwise(decoder)
    device = resamples.device
    whole = decoder.measure(observed, names, metrics.once(resamples.rows, device))
    picked = {key: resamples.pick(values) for key, values in observed.items()}
    values = {name: float(value.item()) for name, value in whole.items()}
    classes = () if found is None else found.table

    def measure(weights: Tensor) -> dict[str, Tensor]:
        measured = decoder.measure(picked, names, weights)
        return measured if found is None else {**measured, **found.measure(weights)}

    estimates = {"loss": Estimate(loss)}
    estimates |= resamples.around(values if found is None else {**values, **found.values}, measure, 3 * len(classes))
    ordered = {name: estimates[name] for name in decoder.metric_names}
    temperature = None if decoder.temperature is None else float(decoder.temperature.item())
    match decoder:
        case Classifier():
            predicted, target = observed["predicted"], observed["target"]
            bins = _bins(observed["confidence"], predicted == target)
            table = _confusion(predicted, target, decoder.classes)
            return OutputResult("category", ordered, table, classes, bins, temperature)
        case BinaryDecoder():
            probability, target = torch.sigmoid(observed["score"]), observed["target"]
            predicted = (probability >= decoder.threshold).long()
            table = _confusion(predicted, target.long(), decoder.classes)
            classes = _two_classes(table["counts"], decoder.classes)
            bins = _bins(probability, target > 0.5)
            return OutputResult("binary", ordered, table, classes, bins, temperature, decoder.threshold)
        case SetDecoder():
            threshold = decoder.threshold
            return OutputResult("set", ordered, None, classes, temperature=temperature, threshold=threshold)
        case NumberDecoder():
            return OutputResult("number", ordered, zero_targets=int((observed["target"] == 0).sum().item()))
    return OutputResult(decoder.kind, ordered)


def _confusion(predicted: Tensor, target: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    size = len(classes)
    codes, rows = torch.unique(target * size + predicted, return_counts=True)
    actual, said = codes // size, codes % size
    counts = None
    if size <= LARGEST_CONFUSION:
        square = torch.zeros(size * size, dtype=torch.int64, device=codes.device)
        square[codes] = rows
        counts = square.view(size, size).tolist()
    wrong = actual != said
    most = rows[wrong].argsort(descending=True, stable=True)[:CONFUSED]
    pairs = zip(actual[wrong][most].tolist(), said[wrong][most].tolist(), rows[wrong][most].tolist(), strict=True)
    return {
        "labels": list(classes),
        "counts": counts,
        "pairs": [{"actual": classes[one], "predicted": classes[other], "rows": count} for one, other, count in pairs],
    }


def _two_classes(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> list[dict[str, Any]]:
    table = []
    for place, name in enumerate(classes):
        right, rows = counts[place][place], sum(counts[place])
        said = sum(row[place] for row in counts)
        table.append(
            {
                "class": name,
                "rows": rows,
                "predicted": said,
                "precision": right / said if said else 0.0,
                "recall": right / rows if rows else 0.0,
                "f1": 2 * right / (said + rows) if said + rows else 0.0,
            }
        )
    return table


def _bins(confidence: Tensor, right: Tensor) -> list[dict[str, Any]]:
    ones = metrics.once(len(confidence), confidence.device)
    place = metrics.bins(confidence)
    rows, sure, so = (
        metrics.counts(place, metrics.BINS, ones * values)[0].tolist()
        for values in (torch.ones_like(confidence).double(), confidence.double(), right.double())
    )
    return [
        {
            "low": at / metrics.BINS,
            "high": (at + 1) / metrics.BINS,
            "rows": int(count),
            "confidence": sure[at] / count,
            "accuracy": so[at] / count,
        }
        for at, count in enumerate(rows)
        if count
    ]
