from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cachestore.errors import ConfigError
from trainer.decoders import (
    BinaryFocal,
    BinaryMlpClassifier,
    BinaryRegressor,
    BinaryWeightedCrossEntropy,
    CategoryClassifier,
    CategoryLoss,
    CategoryMlpClassifier,
    Classifier,
    Decoder,
    Focal,
    Huber,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    NumberLoss,
    NumberRegressor,
    Poly,
    RootMeanSquaredError,
    RootMeanSquaredPercentageError,
    SetClassifier,
    SetMlpClassifier,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    VectorProjector,
)
from trainer.layers import FcLayerSettings
from trainer.metrics import DIRECTIONS

NAMES = ("a", "b", "c")


def category(loss: CategoryLoss, settings: CategoryClassifier | None = None) -> Classifier:
    return (settings or CategoryClassifier()).build(4, NAMES, loss, top_k=1, where="kind")


DECODERS: list[tuple[Decoder, Tensor]] = [
    (category(SoftmaxCrossEntropy()), torch.arange(6) % 3),
    (CategoryMlpClassifier().build(4, NAMES, Focal(), 1, "kind"), torch.arange(6) % 3),
    (BinaryRegressor().build(4, BinaryWeightedCrossEntropy(), 0.5), torch.arange(6).float() % 2),
    (BinaryMlpClassifier().build(4, BinaryFocal(), 0.5), torch.arange(6).float() % 2),
    (NumberRegressor().build(4, MeanSquaredError(), None), torch.arange(6).float() + 1),
    (SetClassifier().build(4, NAMES, SigmoidCrossEntropy(), 0.5, "tags"), (torch.arange(18) % 2).view(6, 3).float()),
    (SetMlpClassifier().build(4, NAMES, SigmoidCrossEntropy(), 0.5, "tags"), (torch.arange(18) % 2).view(6, 3).float()),
    (VectorProjector().build(4, 2, MeanSquaredError()), torch.ones(6, 2)),
]


@pytest.mark.parametrize(("decoder", "targets"), DECODERS)
def test_every_decoder_keeps_the_interface(decoder: Decoder, targets: Tensor) -> None:
    rows = 6
    scores = decoder(torch.randn(rows, 4))
    loss = decoder.loss(scores, targets)
    assert loss.shape == ()
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    observed = decoder.observe(scores.detach(), targets)
    assert all(tensor.shape == (rows,) for tensor in observed.values())  # an epoch keeps a few numbers a row
    found = decoder.metrics(observed)
    assert tuple(found) == decoder.epoch_metrics
    assert all(math.isfinite(value) for value in found.values())
    assert decoder.default_metric in decoder.epoch_metrics
    assert {"loss", *decoder.epoch_metrics} <= set(decoder.metric_names) <= DIRECTIONS.keys()
    for metric in decoder.metric_names:
        decoder.also_measure(metric)
    every = decoder.metrics(decoder.observe(scores.detach(), targets))
    assert {"loss", *every} == set(decoder.metric_names)
    decoder.measured = decoder.epoch_metrics
    assert len(decoder.predict(scores.detach())) == rows


def test_the_mlp_classifier_has_a_hidden_layer() -> None:
    for settings in (CategoryMlpClassifier(), BinaryMlpClassifier(), SetMlpClassifier()):
        assert [layer.output_size for layer in settings.layers()] == [256]


def test_layers_of_a_decoder_may_be_listed_and_biases_left_out() -> None:
    settings = CategoryClassifier(
        fc_layers=(FcLayerSettings(output_size=8), FcLayerSettings(use_bias=True)), fc_use_bias=False, use_bias=False
    )
    linear = [module for module in category(SoftmaxCrossEntropy(), settings).modules() if isinstance(module, nn.Linear)]
    assert [(module.out_features, module.bias is not None) for module in linear] == [
        (8, False),
        (256, True),
        (3, False),
    ]


@pytest.mark.parametrize("weights", [{"b": 3.0}, (1.0, 3.0, 1.0)])
def test_class_weights_are_those_of_torch(weights: dict[str, float] | tuple[float, ...]) -> None:
    scores, targets = torch.randn(20, 3), torch.randint(3, (20,))
    decoder = category(SoftmaxCrossEntropy(class_weights=weights, label_smoothing=0.2))
    expected = nn.functional.cross_entropy(scores, targets, weight=torch.tensor([1.0, 3, 1]), label_smoothing=0.2)
    assert torch.equal(decoder.loss(scores, targets), expected)


def test_class_weights_that_fit_no_class_are_refused() -> None:
    wrong = SoftmaxCrossEntropy(class_weights={"billng": 3.0})
    with pytest.raises(ConfigError, match=r"kind\.loss\.class_weights\.billng: .*did you mean 'billing'"):
        CategoryClassifier().build(4, ("billing", "c"), wrong, top_k=1, where="kind")
    with pytest.raises(ConfigError, match=r"kind\.loss\.class_weights: has 2 weights, .* 3 classes; .*a, b, c"):
        category(SoftmaxCrossEntropy(class_weights=(1.0, 2.0)))


@pytest.mark.parametrize(
    ("loss", "row"),
    [
        (Focal(gamma=2.0), lambda p: -((1 - p) ** 2) * math.log(p)),
        (Focal(gamma=0.0), lambda p: -math.log(p)),
        (Poly(epsilon=1.5), lambda p: -math.log(p) + 1.5 * (1 - p)),
    ],
)
def test_focal_and_poly_loss_are_those_of_their_papers(loss: Focal | Poly, row: object) -> None:
    scores, targets = torch.randn(7, 3), torch.arange(7) % 3
    chances = scores.double().softmax(dim=1)[torch.arange(7), targets].tolist()
    rows = torch.tensor([row(chance) for chance in chances])  # type: ignore[operator]
    assert category(loss).loss(scores, targets).item() == pytest.approx(rows.mean().item(), rel=1e-5)
    weighted = loss.model_copy(update={"class_weights": {"c": 5.0}})
    weights = torch.tensor([1.0, 1, 5])[targets]
    expected = (rows * weights).sum() / weights.sum()
    assert category(weighted).loss(scores, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_confidence_penalty_is_what_entropy_lacks_of_its_most() -> None:
    plain, penal = category(SoftmaxCrossEntropy()), category(SoftmaxCrossEntropy(confidence_penalty=2.0))
    targets = torch.zeros(1, dtype=torch.int64)
    for scores, lacking in ((torch.zeros(1, 3), 0.0), (torch.tensor([[60.0, 0, 0]]), 1.0)):
        added = penal.loss(scores, targets) - plain.loss(scores, targets)
        assert added.item() == pytest.approx(2 * lacking, abs=1e-5)
    build = BinaryRegressor().build
    one, other = (build(2, BinaryWeightedCrossEntropy(confidence_penalty=size), 0.5) for size in (0.0, 2.0))
    for score, lacking in ((0.0, 0.0), (60.0, 1.0)):
        added = other.loss(torch.tensor([score]), torch.ones(1)) - one.loss(torch.tensor([score]), torch.ones(1))
        assert added.item() == pytest.approx(2 * lacking, abs=1e-5)


def test_positive_class_weight_multiplies_the_loss_of_true_rows() -> None:
    build = BinaryRegressor().build
    plain = build(2, BinaryWeightedCrossEntropy(), 0.5)
    weighted = build(2, BinaryWeightedCrossEntropy(positive_class_weight=3.0), 0.5)
    scores = torch.tensor([0.3, -1.0])
    for target, factor in ((1.0, 3.0), (0.0, 1.0)):
        targets = torch.full((2,), target)
        assert weighted.loss(scores, targets).item() == pytest.approx(factor * plain.loss(scores, targets).item())


def test_binary_focal_loss_is_that_of_its_paper() -> None:
    decoder = BinaryRegressor().build(2, BinaryFocal(alpha=0.3, gamma=1.0), 0.5)
    chance = torch.sigmoid(torch.tensor(0.4)).item()
    true, false = (decoder.loss(torch.tensor([0.4]), torch.tensor([so])).item() for so in (1.0, 0.0))
    assert true == pytest.approx(-0.3 * (1 - chance) * math.log(chance), rel=1e-5)
    assert false == pytest.approx(-0.7 * chance * math.log(1 - chance), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (MeanSquaredError(), 5.0),
        (MeanAbsoluteError(), 2.0),
        (Huber(delta=2.0), 2.25),
        (MeanAbsolutePercentageError(), 0.75),
        (RootMeanSquaredError(), math.sqrt(5.0)),
        (RootMeanSquaredPercentageError(), math.sqrt((0.5**2 + 1.0**2) / 2)),
    ],
)
def test_number_losses(loss: NumberLoss, expected: float) -> None:
    decoder = NumberRegressor().build(2, loss, None)
    targets = torch.tensor([2.0, 3.0])
    found = decoder.loss(torch.tensor([1.0, 3.0]) + targets, targets)
    assert found.item() == pytest.approx(expected)


def test_percentage_errors_are_of_the_columns_own_units() -> None:
    decoder = NumberRegressor().build(2, MeanAbsolutePercentageError(), restore=lambda values: values * 10 + 100)
    assert decoder.loss(torch.tensor([1.0]), torch.tensor([0.0])).item() == pytest.approx(0.1)


@pytest.mark.parametrize("loss", [MeanAbsolutePercentageError(), RootMeanSquaredPercentageError()])
@pytest.mark.parametrize("shift", [0.0, 17.7])
def test_a_target_of_zero_is_in_no_percentage_error(loss: NumberLoss, shift: float) -> None:
    restore = (lambda values: values * 41.3 + shift) if shift else None
    decoder = NumberRegressor().build(2, loss, restore)
    wanted = torch.tensor([0.0, 50.0, 0.0, 80.0, 20.0])
    targets = (wanted - shift) / 41.3 if shift else wanted
    scores = torch.zeros(5, requires_grad=True)
    parts = [(scores[:2], targets[:2]), (scores[2:3], targets[2:3]), (scores[3:], targets[3:])]
    losses = torch.stack([decoder.loss(*part) for part in parts])
    losses.sum().backward()
    assert scores.grad is not None
    assert (scores.grad != 0).tolist() == [False, True, False, True, True]
    weights = torch.stack([torch.as_tensor(decoder.loss_weight(targets)) for _, targets in parts])
    share = ((shift - wanted[wanted > 0]) / wanted[wanted > 0]).abs()
    mean = share.mean() if isinstance(loss, MeanAbsolutePercentageError) else share.square().mean().sqrt()
    assert weights.tolist() == [1, 0, 2]
    assert decoder.joined_loss(losses.detach().double(), weights.double()) == pytest.approx(mean.item(), rel=1e-5)


def test_the_root_of_the_mean_square_over_a_split_does_not_depend_on_its_batches() -> None:
    decoder = NumberRegressor().build(2, RootMeanSquaredError(), None)
    values, targets = torch.randn(10), torch.randn(10)
    losses = torch.stack([decoder.loss(values[:3], targets[:3]), decoder.loss(values[3:], targets[3:])]).double()
    whole = decoder.loss(values, targets).item()
    assert decoder.joined_loss(losses, torch.tensor([3.0, 7.0]).double()) == pytest.approx(whole, rel=1e-6)


def test_normalised_targets_are_measured_and_predicted_in_their_own_units() -> None:
    decoder = NumberRegressor().build(2, MeanSquaredError(), restore=lambda values: values * 10 + 5)
    scores, targets = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])
    assert decoder.loss(scores, targets).item() == 0.5
    assert decoder.metrics(decoder.observe(scores, targets))["mean_absolute_error"] == 5.0
    assert decoder.predict(scores).tolist() == [15.0, 25.0]


def test_clipped_predictions_are_measured_and_the_loss_is_not() -> None:
    decoder = NumberRegressor().build(2, MeanSquaredError(), None, clip=(0.0, 5.0))
    scores, targets = torch.tensor([-3.0, 9.0]), torch.tensor([0.0, 5.0])
    assert decoder.predict(scores).tolist() == [0.0, 5.0]
    assert decoder.metrics(decoder.observe(scores, targets))["mean_squared_error"] == 0.0
    assert decoder.loss(scores, targets).item() == 12.5


@pytest.mark.parametrize(
    "settings", [{"label_smoothing": 1.0}, {"confidence_penalty": -1.0}, {"class_weights": (0.0,)}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SoftmaxCrossEntropy(**settings)  # type: ignore[arg-type]


def test_the_threshold_decides_what_is_predicted_true() -> None:
    decoder = BinaryRegressor().build(2, BinaryWeightedCrossEntropy(), threshold=0.8)
    observed = decoder.observe(torch.tensor([2.0, 1.0, 0.0]), torch.ones(3))  # 0.88, 0.73, 0.5
    assert decoder.metrics(observed)["recall"] == pytest.approx(1 / 3)


def test_weights_of_labels_multiply_their_loss_where_they_are_there_as_in_ludwig() -> None:
    scores, targets = torch.randn(5, 3), (torch.rand(5, 3) < 0.5).float()
    decoder = SetClassifier().build(2, NAMES, SigmoidCrossEntropy(class_weights={"b": 4.0}), 0.5, "tags")
    rows = nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    weights = torch.where(targets > 0, torch.tensor([1.0, 4, 1]), 1.0)
    assert decoder.loss(scores, targets).item() == pytest.approx((rows * weights).mean().item())
