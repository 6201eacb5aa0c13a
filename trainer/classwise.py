"""Metrics of each class of a category, or label of a set, against all others; a few classes' probabilities at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer import metrics
from trainer.batches import Batches
from trainer.bootstrap import Bootstrap
from trainer.decoders import Classifier, SetDecoder

_KEPT_AT_ONCE = 1 << 24  # probabilities: 64 MiB
_LABELLED_AT_ONCE = 1 << 20  # labels of rows, as float64
_RANKED_AT_ONCE = 1 << 18  # which takes some 150 bytes each


@dataclass(frozen=True)
class Classwise:
    """The means over classes, and the table of them.

    ``measure`` gives those of resamples from weights (resamples, rows) of the rows that are resampled; of roc_auc and
    average_precision the linear part alone, the influence of each row on them (``metrics.Rankings``).
    """

    values: Mapping[str, float]
    table: Sequence[Mapping[str, Any]]
    measure: Callable[[Tensor], Mapping[str, Tensor]]


def classwise(
    decoder: Classifier | SetDecoder,
    batches: Batches,
    scores: Callable[[], Iterable[Tensor]],
    targets: Tensor,
    resamples: Bootstrap,
) -> Classwise:
    """``scores`` gives those of all rows, batch by batch, as often as it is called; ``targets`` are of all rows."""
    rows = batches.rows
    threshold = decoder.threshold if isinstance(decoder, SetDecoder) else 0.0
    best = torch.cat([part.argmax(dim=1) for part in scores()]) if isinstance(decoder, Classifier) else None
    of_roc_auc, of_average_precision = torch.zeros(2, rows, dtype=torch.float64, device=batches.device)
    table: list[dict[str, Any]] = []
    labels: list[tuple[Tensor, Tensor]] = []  # of a set, of the rows that are resampled
    for start, probabilities in _columns(decoder, rows, batches.device, scores):
        places = torch.arange(start, start + len(probabilities), device=batches.device)[:, None]
        if best is None:
            said, so = probabilities >= threshold, targets[:, start : start + len(places)].T > 0.5
        else:
            said, so = best == places, targets == places
        ranked = metrics.Rankings(probabilities, so)
        there = so.sum(dim=1)
        of_roc_auc += ranked.of_roc_auc[(there > 0) & (there < rows)].sum(dim=0)
        of_average_precision += ranked.of_average_precision[there > 0].sum(dim=0)
        columns = (there, said.sum(dim=1), (said & so).sum(dim=1), ranked.roc_auc, ranked.average_precision)
        names = decoder.classes[start : start + len(places)]
        table.extend(
            _line(name, *line) for name, *line in zip(names, *(part.tolist() for part in columns), strict=True)
        )
        if isinstance(decoder, SetDecoder):
            labels += [(resamples.pick(one), resamples.pick(other)) for one, other in zip(said, so, strict=True)]
    values = {name: _mean(row[name] for row in table) for name in ("roc_auc", "average_precision")}
    if best is None:
        values["f1_macro"] = _mean(row["f1"] for row in table)
    for row in table:
        row["f1"] = 0.0 if math.isnan(row["f1"]) else row["f1"]
    linear: dict[str, Tensor] = {}
    for name, influence in (("roc_auc", of_roc_auc), ("average_precision", of_average_precision)):
        if defined := sum(not math.isnan(row[name]) for row in table):
            linear[name] = resamples.pick(influence / defined)
    return Classwise(values, table, _measure(linear, labels))


def _measure(
    linear: Mapping[str, Tensor], labels: Sequence[tuple[Tensor, Tensor]]
) -> Callable[[Tensor], Mapping[str, Tensor]]:
    both = [(said & so).to(torch.uint8) for said, so in labels]
    either = [said.to(torch.uint8) + so for said, so in labels]

    def measure(weights: Tensor) -> dict[str, Tensor]:
        found = {name: metrics.mean(influence, weights) for name, influence in linear.items()}
        if labels:
            step = max(1, _LABELLED_AT_ONCE // weights.shape[1])
            parts = [
                2
                * (weights @ torch.stack(both[at : at + step], dim=1).double())
                / (weights @ torch.stack(either[at : at + step], dim=1).double())
                for at in range(0, len(labels), step)
            ]
            found["f1_macro"] = torch.cat(parts, dim=1).nanmean(dim=1)
        return found

    return measure


def _line(name: str, rows: int, predicted: int, right: int, roc_auc: float, average_precision: float) -> dict[str, Any]:
    return {
        "class": name,
        "rows": rows,
        "predicted": predicted,
        "precision": right / predicted if predicted else 0.0,
        "recall": right / rows if rows else 0.0,
        "f1": 2 * right / (predicted + rows) if predicted + rows else math.nan,
        "roc_auc": roc_auc,
        "average_precision": average_precision,
    }


def _columns(
    decoder: Classifier | SetDecoder, rows: int, device: torch.device, scores: Callable[[], Iterable[Tensor]]
) -> Iterator[tuple[int, Tensor]]:
    """The probabilities of some classes, (classes, rows), and the place of the first of them."""
    kept, ranked = (max(1, most // rows) for most in (_KEPT_AT_ONCE, _RANKED_AT_ONCE))
    for start in range(0, len(decoder.classes), kept):
        some = slice(start, start + kept)
        columns = torch.empty(len(decoder.classes[some]), rows, device=device)
        at = 0
        for part in scores():
            columns[:, at : at + len(part)] = decoder.predict(part)[:, some].T
            at += len(part)
        for at in range(0, len(columns), ranked):
            yield start + at, columns[at : at + ranked]


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
