from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from trainer import metrics
from trainer.decoders import (
    BinaryRegressor,
    BinaryWeightedCrossEntropy,
    CategoryClassifier,
    MeanSquaredError,
    NumberRegressor,
    SetClassifier,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    VectorProjector,
)
from trainer.decoders.base import Decoder

DRAW = torch.Generator().manual_seed(7)
ROWS, CLASSES = 300, 6
NAMES = tuple("abcdef")


def scores_and_targets() -> tuple[Tensor, Tensor]:
    scores = torch.randn(ROWS, CLASSES, generator=DRAW)
    targets = torch.randint(CLASSES - 1, (ROWS,), generator=DRAW)  # the last class never occurs
    scores[torch.arange(ROWS), targets] += 0.7
    return scores, targets


def measured(decoder: Decoder, scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """Every metric of a decoder but its loss."""
    names = [name for name in decoder.metric_names if name != "loss"]
    observed = decoder.observe(scores, targets, names)
    found = decoder.measure(observed, names, metrics.once(len(scores)) if weights is None else weights)
    return {name: float(value.item()) for name, value in found.items()}


def classifier(top_k: int = 3) -> Decoder:
    return CategoryClassifier().build(4, NAMES, SoftmaxCrossEntropy(), top_k=top_k, where="kind")


@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_category_metrics_are_those_of_scikit_learn(top_k: int) -> None:
    scores, targets = scores_and_targets()
    predicted, chances = scores.argmax(dim=1), scores.double().softmax(dim=1)
    labels, there = list(range(CLASSES)), list(range(CLASSES - 1))
    found = measured(classifier(top_k), scores, targets)
    ece = found.pop("ece")
    one_hot = torch.nn.functional.one_hot(targets, CLASSES)
    assert found == pytest.approx(
        {
            "accuracy": reference.accuracy_score(targets, predicted),
            "hits_at_k": reference.top_k_accuracy_score(targets, scores, k=top_k, labels=labels),
            "f1_macro": reference.f1_score(targets, predicted, average="macro"),
            "f1_micro": reference.f1_score(targets, predicted, average="micro"),
            "f1_weighted": reference.f1_score(targets, predicted, average="weighted"),
            "balanced_accuracy": reference.recall_score(targets, predicted, average="macro", labels=there),
            "mcc": reference.matthews_corrcoef(targets, predicted),
            "log_loss": reference.log_loss(targets, chances, labels=labels),
            "brier": reference.brier_score_loss(targets, chances, labels=labels, scale_by_half=False),
            "roc_auc": np.mean([reference.roc_auc_score(one_hot[:, at], chances[:, at]) for at in there]),
            "average_precision": reference.average_precision_score(one_hot[:, there], chances[:, there]),
        },
        abs=1e-6,
    )
    assert ece == pytest.approx(calibration_error(chances.amax(dim=1), predicted == targets), abs=1e-6)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Bin by bin, as Guo et al. 2017 write it."""
    total = 0.0
    for at in range(15):
        inside = (confidence > at / 15) & (confidence <= (at + 1) / 15)
        if inside.any():
            gap = right[inside].double().mean() - confidence[inside].double().mean()
            total += float(inside.sum() / len(right) * gap.abs())
    return total


def test_one_vs_rest_roc_auc_is_scikit_learns_where_every_class_occurs() -> None:
    scores = torch.randn(ROWS, 4, generator=DRAW)
    targets = torch.arange(ROWS) % 4
    decoder = CategoryClassifier().build(4, NAMES[:4], SoftmaxCrossEntropy(), top_k=1, where="kind")
    expected = reference.roc_auc_score(targets, scores.double().softmax(dim=1), multi_class="ovr")
    assert measured(decoder, scores, targets)["roc_auc"] == pytest.approx(expected, abs=1e-6)
    balanced = reference.balanced_accuracy_score(targets, scores.argmax(dim=1))
    assert measured(decoder, scores, targets)["balanced_accuracy"] == pytest.approx(balanced)


def test_a_class_that_occurs_nowhere_does_not_lower_f1_macro() -> None:
    labels = torch.tensor([0, 1, 1])
    assert metrics.ClassCounts(labels, labels, 5, metrics.once(3)).f1_macro().item() == 1.0


def test_equal_scores_hit_the_lowest_classes_only() -> None:
    ranks = metrics.rank(torch.zeros(4, 4), torch.arange(4))
    assert ranks.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_binary_metrics_are_those_of_scikit_learn(threshold: float) -> None:
    targets = torch.rand(ROWS, generator=DRAW) < 0.3
    scores = targets.float() + torch.randn(ROWS, generator=DRAW)
    chances = torch.sigmoid(scores.double())
    predicted = torch.sigmoid(scores) >= threshold
    found = measured(BinaryRegressor().build(4, BinaryWeightedCrossEntropy(), threshold), scores, targets.float())
    ece = found.pop("ece")
    assert found == pytest.approx(
        {
            "roc_auc": reference.roc_auc_score(targets, chances),
            "average_precision": reference.average_precision_score(targets, chances),
            "accuracy": reference.accuracy_score(targets, predicted),
            "precision": reference.precision_score(targets, predicted),
            "recall": reference.recall_score(targets, predicted),
            "specificity": reference.recall_score(targets, predicted, pos_label=False),
            "f1": reference.f1_score(targets, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(targets, predicted),
            "mcc": reference.matthews_corrcoef(targets, predicted),
            "log_loss": reference.log_loss(targets, chances),
            "brier": reference.brier_score_loss(targets, chances),
        },
        abs=1e-6,
    )
    sure = torch.maximum(chances, 1 - chances)
    assert ece == pytest.approx(calibration_error(sure, (chances > 0.5) == targets), abs=1e-6)


def test_nothing_said_or_nothing_true_is_zero() -> None:
    no, yes, once = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool), metrics.once(3)
    found = {name: value.item() for name, value in metrics.binary(no, yes, once).items()}
    assert not any(found.values())
    found = {name: value.item() for name, value in metrics.binary(no, no, once).items()}
    assert found == {
        **dict.fromkeys(("precision", "recall", "f1", "mcc"), 0.0),
        **dict.fromkeys(("accuracy", "specificity", "balanced_accuracy"), 1.0),
    }


@pytest.mark.parametrize("distinct", [5, 40, 10_000])
def test_ranking_metrics_are_those_of_scikit_learn_also_with_ties(distinct: int) -> None:
    scores = torch.randint(distinct, (ROWS,), generator=DRAW).float()
    targets = (scores / distinct + torch.rand(ROWS, generator=DRAW) > 1).float()
    once = metrics.once(ROWS)
    assert metrics.roc_auc(scores, targets, once).item() == pytest.approx(
        reference.roc_auc_score(targets, scores), abs=1e-12
    )
    assert metrics.average_precision(scores, targets, once).item() == pytest.approx(
        reference.average_precision_score(targets, scores), abs=1e-12
    )


@pytest.mark.parametrize("distinct", [5, 10_000])
def test_a_rows_influence_on_a_ranking_is_its_derivative(distinct: int) -> None:
    scores = torch.randint(distinct, (40,), generator=DRAW).float()
    targets = (scores / distinct + torch.rand(40, generator=DRAW) > 1).float()
    found = metrics.Rankings(scores[None], targets[None])
    weights = metrics.once(40).repeat(40, 1) + 1e-6 * torch.eye(40, dtype=torch.float64)
    for of, influence in ((metrics.roc_auc, found.of_roc_auc), (metrics.average_precision, found.of_average_precision)):
        moved = of(scores, targets, weights) - of(scores, targets, metrics.once(40))
        assert torch.allclose(influence[0], moved / 1e-6 * 40, atol=1e-4)


def test_metrics_that_the_rows_do_not_define_are_nan() -> None:
    scores, once = torch.rand(4), metrics.once(4)
    assert math.isnan(metrics.roc_auc(scores, torch.ones(4), once).item())
    assert math.isnan(metrics.average_precision(scores, torch.zeros(4), once).item())
    assert math.isnan(metrics.regression(torch.rand(3), torch.ones(3), metrics.once(3))["r2"].item())


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    targets = torch.randn(ROWS, generator=DRAW) * 50 + 1000
    values = targets + torch.randn(ROWS, generator=DRAW) * 20
    found = measured(NumberRegressor().build(4, MeanSquaredError(), None), values, targets)
    wide = targets.double(), values.double()
    assert found == pytest.approx(
        {
            "mean_squared_error": reference.mean_squared_error(*wide),
            "mean_absolute_error": reference.mean_absolute_error(*wide),
            "root_mean_squared_error": reference.root_mean_squared_error(*wide),
            "mean_absolute_percentage_error": reference.mean_absolute_percentage_error(*wide),
            "root_mean_squared_percentage_error": math.sqrt(((wide[1] - wide[0]) / wide[0]).square().mean()),
            "r2": reference.r2_score(*wide),
        }
    )


def test_percentage_errors_are_of_the_rows_whose_target_is_not_zero() -> None:
    targets, values = torch.tensor([0.0, 2.0, 0.0, 4.0]), torch.tensor([1.0, 1.0, 0.0, 5.0])
    found = {name: value.item() for name, value in metrics.regression(values, targets, metrics.once(4)).items()}
    assert found["mean_absolute_percentage_error"] == pytest.approx((0.5 + 0.25) / 2)
    assert found["root_mean_squared_percentage_error"] == pytest.approx(math.sqrt((0.25 + 0.0625) / 2))
    assert found["mean_absolute_error"] == pytest.approx(0.75)
    nothing = metrics.regression(values, torch.zeros(4), metrics.once(4))["mean_absolute_percentage_error"]
    assert math.isnan(nothing.item())
    decoder = VectorProjector().build(4, 2, MeanSquaredError())
    rows = torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.tensor([[5.0, 1.0], [3.0, 3.0]])
    assert measured(decoder, rows[1], rows[0])["mean_absolute_percentage_error"] == 0.5
    rows = torch.tensor([[0.0, 2.0], [4.0, 1.0]]), torch.tensor([[5.0, 1.0], [4.0, 2.0]])
    assert (
        measured(decoder, rows[1], rows[0])["mean_absolute_percentage_error"] == 0.5
    )  # of three places, not of two rows


def test_a_zero_is_still_one_after_normalisation() -> None:
    def restore(values: torch.Tensor) -> torch.Tensor:
        return values * 41.3 + 17.7

    targets = torch.tensor([0.0, 1e-3, 50.0])
    decoder = NumberRegressor().build(4, MeanSquaredError(), restore)
    observed = decoder.observe(torch.zeros(3), (targets - 17.7) / 41.3)
    assert observed["target"].tolist() == pytest.approx(targets.tolist(), abs=1e-5)
    assert (observed["target"] == 0).tolist() == [True, False, False]


def test_every_metric_has_a_range() -> None:
    assert metrics.RANGES.keys() == metrics.DIRECTIONS.keys()


def test_set_metrics_are_those_of_scikit_learn() -> None:
    so = torch.rand(ROWS, 5, generator=DRAW) < 0.3
    scores = so.float() * 2 - 1 + torch.randn(ROWS, 5, generator=DRAW)
    said, chances = torch.sigmoid(scores) >= 0.4, torch.sigmoid(scores)
    decoder = SetClassifier().build(4, NAMES[:5], SigmoidCrossEntropy(), 0.4, "tags")
    assert measured(decoder, scores, so.float()) == pytest.approx(
        {
            "jaccard": reference.jaccard_score(so, said, average="samples", zero_division=1),
            "accuracy": reference.accuracy_score(so, said),
            "f1_micro": reference.f1_score(so, said, average="micro"),
            "f1_macro": reference.f1_score(so, said, average="macro"),
            "roc_auc": reference.roc_auc_score(so, chances),
            "average_precision": reference.average_precision_score(so, chances),
        },
        abs=1e-6,
    )


def test_vector_metrics_are_those_of_scikit_learn() -> None:
    targets = torch.randn(ROWS, 4, generator=DRAW) + 3
    values = targets + torch.randn(ROWS, 4, generator=DRAW)
    found = measured(VectorProjector().build(4, 4, MeanSquaredError()), values, targets)
    squared = reference.mean_squared_error(targets, values)
    assert found == pytest.approx(
        {
            "mean_squared_error": squared,
            "mean_absolute_error": reference.mean_absolute_error(targets, values),
            "root_mean_squared_error": math.sqrt(squared),
            "mean_absolute_percentage_error": reference.mean_absolute_percentage_error(targets, values),
            "cosine_similarity": torch.cosine_similarity(values, targets).mean().item(),
        },
        rel=1e-5,
    )


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    weights = torch.randint(4, (3, ROWS), generator=DRAW).double()
    scores, targets = scores_and_targets()
    truths = torch.rand(ROWS, generator=DRAW) < 0.4
    labels = torch.rand(ROWS, CLASSES, generator=DRAW) < 0.3
    for decoder, given, wanted in (
        (classifier(), scores, targets),
        (BinaryRegressor().build(4, BinaryWeightedCrossEntropy(), 0.5), scores[:, 0], truths.float()),
        (NumberRegressor().build(4, MeanSquaredError(), None), scores[:, 0], scores[:, 1]),
        (SetClassifier().build(4, NAMES, SigmoidCrossEntropy(), 0.5, "tags"), scores, labels.float()),
        (VectorProjector().build(4, 6, MeanSquaredError()), scores, scores.flip(0)),
    ):
        names = [name for name in decoder.metric_names if name != "loss"]
        found = decoder.measure(decoder.observe(given, wanted, names), names, weights)
        for at, row in enumerate(weights):
            repeated = torch.arange(ROWS).repeat_interleave(row.long())
            expected = measured(decoder, given[repeated], wanted[repeated])
            assert {name: float(value[at]) for name, value in found.items()} == pytest.approx(expected, rel=1e-6)


def test_every_metric_and_alias_has_a_direction() -> None:
    assert set(metrics.ALIASES.values()) <= metrics.DIRECTIONS.keys()
    assert not metrics.ALIASES.keys() & metrics.DIRECTIONS.keys()


def test_better_knows_each_metrics_direction() -> None:
    assert metrics.better("accuracy", 0.6, 0.5)
    assert not metrics.better("accuracy", 0.5, 0.5)
    assert metrics.better("loss", 0.4, 0.5)
    assert not metrics.better("mean_squared_error", 0.6, 0.5)
    assert metrics.better("loss", 9.0, None)


@pytest.mark.parametrize("distinct", [1, 5, 10_000])
def test_many_rankings_at_once_are_the_same_as_each_by_itself(distinct: int) -> None:
    scores = torch.randint(distinct, (4, ROWS), generator=DRAW).float()
    truths = torch.rand(4, ROWS, generator=DRAW) < torch.tensor([0.5, 0.1, 0.0, 1.0])[:, None]
    ranked, once = metrics.Rankings(scores, truths), metrics.once(ROWS)
    areas, precisions = zip(
        *(
            (metrics.roc_auc(*each, once), metrics.average_precision(*each, once))
            for each in zip(scores, truths, strict=True)
        ),
        strict=True,
    )
    assert torch.allclose(ranked.roc_auc, torch.cat(areas), equal_nan=True)
    assert torch.allclose(ranked.average_precision, torch.cat(precisions), equal_nan=True)
