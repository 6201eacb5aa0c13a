from __future__ import annotations

import math

import pytest
import torch
from sklearn import metrics as reference

from trainer import metrics

DRAW = torch.Generator().manual_seed(7)
ROWS, CLASSES = 300, 6


def scores_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    scores = torch.randn(ROWS, CLASSES, generator=DRAW)
    targets = torch.randint(CLASSES - 1, (ROWS,), generator=DRAW)  # the last class never occurs
    scores[torch.arange(ROWS), targets] += 0.7
    return scores, targets


def test_category_metrics_are_those_of_scikit_learn() -> None:
    scores, targets = scores_and_targets()
    predicted, ranks = scores.argmax(dim=1), metrics.rank(scores, targets)
    labels = list(range(CLASSES))
    assert metrics.accuracy(predicted, targets) == pytest.approx(reference.accuracy_score(targets, predicted))
    for k in (1, 3, 5):
        expected = reference.top_k_accuracy_score(targets, scores, k=k, labels=labels)
        assert metrics.hits_at_k(ranks, k) == pytest.approx(expected)
    expected = reference.f1_score(targets, predicted, average="macro")
    assert metrics.f1_macro(predicted, targets, CLASSES) == pytest.approx(expected)


def test_a_class_that_occurs_nowhere_does_not_lower_f1_macro() -> None:
    labels = torch.tensor([0, 1, 1])
    assert metrics.f1_macro(labels, labels, 5) == 1.0


def test_equal_scores_hit_the_lowest_classes_only() -> None:
    ranks = metrics.rank(torch.zeros(4, 4), torch.arange(4))
    assert ranks.tolist() == [0, 1, 2, 3]
    assert metrics.hits_at_k(ranks, 2) == 0.5


def test_binary_metrics_are_those_of_scikit_learn() -> None:
    targets = torch.rand(ROWS, generator=DRAW) < 0.3
    predicted = targets ^ (torch.rand(ROWS, generator=DRAW) < 0.2)
    found = metrics.binary(predicted, targets)
    assert found == pytest.approx(
        {
            "accuracy": reference.accuracy_score(targets, predicted),
            "precision": reference.precision_score(targets, predicted),
            "recall": reference.recall_score(targets, predicted),
            "f1": reference.f1_score(targets, predicted),
        }
    )


def test_nothing_said_or_nothing_true_is_zero() -> None:
    no, yes = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    assert metrics.binary(no, yes) == {"accuracy": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert metrics.binary(no, no) == {"accuracy": 1.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}


@pytest.mark.parametrize("distinct", [5, 40, 10_000])
def test_roc_auc_is_that_of_scikit_learn_also_with_ties(distinct: int) -> None:
    scores = torch.randint(distinct, (ROWS,), generator=DRAW).float()
    targets = (scores / distinct + torch.rand(ROWS, generator=DRAW) > 1).float()
    assert metrics.roc_auc(scores, targets) == pytest.approx(reference.roc_auc_score(targets, scores), abs=1e-12)


def test_roc_auc_of_one_class_is_undefined() -> None:
    assert math.isnan(metrics.roc_auc(torch.rand(4), torch.ones(4)))


def test_regression_metrics_are_those_of_scikit_learn() -> None:
    targets = torch.randn(ROWS, generator=DRAW) * 50 + 1000
    values = targets + torch.randn(ROWS, generator=DRAW) * 20
    found = metrics.regression(values, targets)
    wide = values.double(), targets.double()
    assert found == pytest.approx(
        {
            "mean_squared_error": reference.mean_squared_error(wide[1], wide[0]),
            "mean_absolute_error": reference.mean_absolute_error(wide[1], wide[0]),
            "root_mean_squared_error": reference.root_mean_squared_error(wide[1], wide[0]),
            "r2": reference.r2_score(wide[1], wide[0]),
        }
    )


def test_r2_of_constant_targets_is_undefined() -> None:
    assert math.isnan(metrics.regression(torch.rand(3), torch.ones(3))["r2"])


def test_better_knows_each_metrics_direction() -> None:
    assert metrics.better("accuracy", 0.6, 0.5)
    assert not metrics.better("accuracy", 0.5, 0.5)
    assert metrics.better("loss", 0.4, 0.5)
    assert not metrics.better("mean_squared_error", 0.6, 0.5)
    assert metrics.better("loss", 9.0, None)
