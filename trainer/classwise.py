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

_KEPT_AT_ONCE = 1 << 25  # probabilities: 128 MiB
_RANKED_AT_ONCE = 1 << 20  # which takes some 100 bytes each


@dataclass(frozen=True)
class Classwise:
    """The means over classes, and the table of them.

    ``measure`` gives those that have an interval, from weights (resamples, rows) of the rows that are resampled: of roc_auc
    its linear part, the influence of each row on it (Efron 1982, the infinitesimal jackknife). average_precision has none.
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
    influence = torch.zeros(rows, dtype=torch.float64, device=batches.device)
    table: list[dict[str, Any]] = []
    labels: list[tuple[Tensor, Tensor]] = []  # of a set, of the rows that are resampled
    for start, probabilities in _columns(decoder, rows, scores):
        places = torch.arange(start, start + len(probabilities), device=batches.device)[:, None]
        if best is None:
            said, so = probabilities >= threshold, targets[:, start : start + len(places)].T > 0.5
        else:
            said, so = best == places, targets == places
        ranked = metrics.Rankings(probabilities, so)
        there = so.sum(dim=1)
        influence += ranked.influence[(there > 0) & (there < rows)].sum(dim=0)
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
    defined = sum(not math.isnan(row["roc_auc"]) for row in table)
    return Classwise(values, table, _measure(resamples.pick(influence / defined) if defined else None, labels))


def _measure(
    linear: Tensor | None, labels: Sequence[tuple[Tensor, Tensor]]
) -> Callable[[Tensor], Mapping[str, Tensor]]:
    if labels:
        both = torch.stack([said & so for said, so in labels], dim=1).double()
        either = torch.stack([said.double() + so.double() for said, so in labels], dim=1)

    def measure(weights: Tensor) -> dict[str, Tensor]:
        found = {} if linear is None else {"roc_auc": metrics.mean(linear, weights)}
        if labels:
            found["f1_macro"] = (2 * (weights @ both) / (weights @ either)).nanmean(dim=1)
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
    decoder: Classifier | SetDecoder, rows: int, scores: Callable[[], Iterable[Tensor]]
) -> Iterator[tuple[int, Tensor]]:
    """The probabilities of some classes, (classes, rows), and the place of the first of them."""
    kept, ranked = (max(1, most // rows) for most in (_KEPT_AT_ONCE, _RANKED_AT_ONCE))
    for start in range(0, len(decoder.classes), kept):
        columns = torch.cat([decoder.predict(part)[:, start : start + kept] for part in scores()]).T.contiguous()
        for at in range(0, len(columns), ranked):
            yield start + at, columns[at : at + ranked]


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
