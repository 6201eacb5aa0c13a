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
from trainer.bootstrap import Bootstrap, Estimate
from trainer.decoders import Classifier, SetDecoder

_AT_ONCE = 1 << 25  # probabilities: 128 MiB


@dataclass(frozen=True)
class Classwise:
    """The means over classes, and the table of them."""

    estimates: Mapping[str, Estimate]
    table: Sequence[Mapping[str, Any]]


def classwise(
    decoder: Classifier | SetDecoder,
    batches: Batches,
    scores: Callable[[], Iterable[Tensor]],
    targets: Tensor,
    resamples: Bootstrap,
) -> Classwise:
    """``scores`` gives those of all rows, batch by batch, as often as it is called; ``targets`` are of all rows.

    roc_auc has an interval of its linear part, the influence of each row on it (Efron 1982, the infinitesimal jackknife);
    average_precision has none.
    """
    rows = batches.rows
    once = metrics.once(rows, batches.device)
    threshold = decoder.threshold if isinstance(decoder, SetDecoder) else 0.0
    best = torch.cat([part.argmax(dim=1) for part in scores()]) if isinstance(decoder, Classifier) else None
    influence = torch.zeros(rows, dtype=torch.float64, device=batches.device)
    table: list[dict[str, Any]] = []
    labels: list[tuple[Tensor, Tensor]] = []  # of a set, of the rows that are resampled
    for place, probability in _columns(decoder, rows, scores):
        so = targets == place if isinstance(decoder, Classifier) else targets[:, place] > 0.5
        said = torch.eq(best, place) if best is not None else probability >= threshold
        there, predicted, right = (int(mask.sum().item()) for mask in (so, said, so & said))
        table.append(
            {
                "class": decoder.classes[place],
                "rows": there,
                "predicted": predicted,
                "precision": right / predicted if predicted else 0.0,
                "recall": right / there if there else 0.0,
                "f1": 2 * right / (predicted + there) if predicted + there else math.nan,
                "roc_auc": _one(metrics.roc_auc(probability, so, once)),
                "average_precision": _one(metrics.average_precision(probability, so, once)),
            }
        )
        if 0 < there < rows:
            influence += metrics.roc_auc_influence(probability, so)
        if isinstance(decoder, SetDecoder):
            labels.append((resamples.pick(said), resamples.pick(so)))
    defined = sum(not math.isnan(row["roc_auc"]) for row in table)
    estimates = {"average_precision": Estimate(_mean(row["average_precision"] for row in table))}
    estimates["roc_auc"] = Estimate(_mean(row["roc_auc"] for row in table))
    if defined:
        linear = resamples.pick(influence / defined)
        estimates |= resamples.around(
            {"roc_auc": estimates["roc_auc"].value}, lambda weights: {"roc_auc": metrics.mean(linear, weights)}
        )
    if labels:
        value = _mean(row["f1"] for row in table)
        measure = _f1_of(labels)
        estimates |= resamples.around({"f1_macro": value}, measure, width=2 * len(labels))
    for row in table:
        row["f1"] = 0.0 if math.isnan(row["f1"]) else row["f1"]
    return Classwise(estimates, table)


def _columns(
    decoder: Classifier | SetDecoder, rows: int, scores: Callable[[], Iterable[Tensor]]
) -> Iterator[tuple[int, Tensor]]:
    at_once = max(1, _AT_ONCE // rows)
    for start in range(0, len(decoder.classes), at_once):
        parts = [decoder.predict(part)[:, start : start + at_once] for part in scores()]
        yield from enumerate(torch.cat(parts).T.contiguous(), start)


def _f1_of(labels: Sequence[tuple[Tensor, Tensor]]) -> Callable[[Tensor], dict[str, Tensor]]:
    both = torch.stack([said & so for said, so in labels], dim=1).double()
    either = torch.stack([said.double() + so.double() for said, so in labels], dim=1)
    return lambda weights: {"f1_macro": (2 * (weights @ both) / (weights @ either)).nanmean(dim=1)}


def _one(value: Tensor) -> float:
    return float(value.item())


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
