"""Trials that train in one pass, each beside its lone run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from cachestore.errors import CachestoreError, TrainingDiverged
from tests.training.heads import CLASSES, DIM, three_outputs
from trainer.batches import CachedBatches
from trainer.combiners import ConcatCombiner
from trainer.decoders import (
    BinaryRegressor,
    BinaryWeightedCrossEntropy,
    CategoryClassifier,
    Focal,
    MeanSquaredError,
    NumberRegressor,
    RootMeanSquaredError,
    SoftmaxCrossEntropy,
)
from trainer.layers import FcLayerSettings
from trainer.loop import EpochDone, FitResult, FitSettings, fit
from trainer.model import Model
from trainer.optim import Adam, Clipping, Penalty, Plateau, Schedule, Sgd
from trainer.sweep.layers import Unstackable
from trainer.sweep.together import Member, fit_together, obstacle

SETTINGS = FitSettings(4, 16, 0.01, "kind", "accuracy", early_stop=-1)


@dataclass
class Curve:
    epochs: list[EpochDone]
    end: FitResult | CachestoreError | None = None


@dataclass(frozen=True)
class Shape:
    """What all trials of a test have in common."""

    layers: int = 0
    norm: str | None = None
    residual: bool = False
    loss: object = SoftmaxCrossEntropy()
    number: object = MeanSquaredError()

    def model(self, seed: int, dropout: float) -> Model:
        torch.manual_seed(seed)
        settings = [FcLayerSettings(output_size=DIM, dropout=dropout, norm=self.norm)] * self.layers
        combiner = ConcatCombiner(fc_layers=tuple(settings), residual=self.residual).build({"text": DIM})
        kind = CategoryClassifier().build(combiner.dim, CLASSES, self.loss, top_k=2, where="kind")
        decoders = {
            "kind": kind,
            "is_bee": BinaryRegressor(num_fc_layers=1, fc_output_size=4).build(
                combiner.dim, BinaryWeightedCrossEntropy(positive_class_weight=2.0), threshold=0.5
            ),
            "size": NumberRegressor().build(combiner.dim, self.number, restore=None),
        }
        return Model({"text": nn.Identity()}, (), combiner, decoders, {"kind": 1.0, "is_bee": 0.5, "size": 0.1})


@dataclass(frozen=True)
class Trial:
    seed: int = 1
    dropout: float = 0.0
    decay: float = 0.0
    sgd: bool = False
    settings: FitSettings = SETTINGS

    def member(self, shape: Shape) -> Member:
        model = shape.model(self.seed, self.dropout)
        parameters = model.parameters()
        optimizer = Sgd(parameters, momentum=0.9) if self.sgd else Adam(parameters, weight_decay=self.decay)
        return Member(model, optimizer, replace(self.settings, seed=self.seed))


RATES = (
    Trial(settings=replace(SETTINGS, learning_rate=0.001)),
    Trial(settings=replace(SETTINGS, learning_rate=0.01, early_stop=1), decay=0.1),
    Trial(settings=replace(SETTINGS, learning_rate=0.1, early_stop=2), decay=0.01),
    Trial(settings=replace(SETTINGS, learning_rate=0.03, schedule=Schedule("cosine", 0.2)), sgd=True),
    Trial(settings=replace(SETTINGS, clipping=Clipping(global_norm=0.1), penalty=Penalty(l2=0.01))),
    Trial(settings=replace(SETTINGS, plateau=Plateau(times=2, patience=0, factor=0.5, metric="loss", split="train"))),
)
CASES = {
    "a linear head": (Shape(), RATES),
    "other seeds": (Shape(), [replace(trial, seed=place % 4) for place, trial in enumerate(RATES)]),
    "hidden layers": (Shape(layers=2, norm="layer", residual=True), RATES),
    "dropout": (Shape(layers=2), [replace(trial, dropout=0.3) for trial in RATES]),
    "dropout of other rates and seeds": (
        Shape(layers=2),
        [replace(trial, dropout=(0.1, 0.5, 0.1)[place % 3], seed=place % 2) for place, trial in enumerate(RATES)],
    ),
    "class weights and other orders": (
        Shape(loss=SoftmaxCrossEntropy(class_weights={"ant": 3.0}, label_smoothing=0.1)),
        [Trial(seed=1), Trial(seed=2, settings=replace(SETTINGS, learning_rate=0.05))],
    ),
    "losses without a form of their own": (Shape(loss=Focal(), number=RootMeanSquaredError()), RATES),
    "metrics of the training set": (
        Shape(),
        [replace(t, settings=replace(t.settings, evaluate_training_set=True)) for t in RATES],
    ),
}


def alone(trial: Trial, shape: Shape, train: CachedBatches, validation: CachedBatches | None) -> tuple[Member, Curve]:
    member, curve = trial.member(shape), Curve([])
    curve.end = fit(
        member.model,
        train,
        validation,
        optimizer=member.optimizer,
        settings=member.settings,
        on_epoch=curve.epochs.append,
    )
    return member, curve


def together(
    trials: Sequence[Trial], shape: Shape, train: CachedBatches, validation: CachedBatches | None
) -> tuple[list[Member], list[Curve]]:
    members, curves = [trial.member(shape) for trial in trials], [Curve([]) for _ in trials]

    def end(at: int, done: FitResult | CachestoreError) -> None:
        assert curves[at].end is None
        curves[at].end = done

    fit_together(members, train, validation, on_epoch=lambda at, epoch: curves[at].epochs.append(epoch), on_end=end)
    return members, curves


def assert_same(member: Member, found: Curve, lone: Member, expected: Curve) -> None:
    assert isinstance(found.end, FitResult)
    assert isinstance(expected.end, FitResult)
    assert (found.end.epochs, found.end.best_epoch) == (expected.end.epochs, expected.end.best_epoch)
    for ours, theirs in zip(found.epochs, expected.epochs, strict=True):
        assert ours.learning_rate == pytest.approx(theirs.learning_rate)
        assert ours.best == theirs.best
        for split, outputs in theirs.metrics.items():
            for name, metrics in outputs.items():
                assert ours.metrics[split][name]["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
                assert ours.metrics[split][name] == pytest.approx(metrics, rel=1e-3, abs=1e-4)
    weights = lone.model.state_dict()
    for name, tensor in member.model.state_dict().items():
        assert torch.allclose(tensor, weights[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("case", CASES)
def test_each_trial_has_the_curve_of_its_lone_run(case: str) -> None:
    shape, trials = CASES[case]
    train, validation = three_outputs(83), three_outputs(40, seed=1)
    members, curves = together(trials, shape, train, validation)
    for trial, member, curve in zip(trials, members, curves, strict=True):
        assert_same(member, curve, *alone(trial, shape, train, validation))


def test_without_validation_rows_every_epoch_is_run() -> None:
    shape, train = Shape(), three_outputs(60)
    members, curves = together(RATES[:2], shape, train, None)
    assert [curve.end.epochs for curve in curves if isinstance(curve.end, FitResult)] == [4, 4]
    for trial, member, curve in zip(RATES, members, curves, strict=False):
        assert_same(member, curve, *alone(trial, shape, train, None))


def test_a_trial_that_diverges_leaves_and_the_others_go_on() -> None:
    shape, train, validation = Shape(), three_outputs(83), three_outputs(40, seed=1)
    wild = Trial(sgd=True, settings=replace(SETTINGS, learning_rate=1e20))
    members, curves = together([RATES[0], wild, RATES[2]], shape, train, validation)
    with pytest.raises(TrainingDiverged) as expected:
        alone(wild, shape, train, validation)
    assert isinstance(curves[1].end, TrainingDiverged)
    assert str(curves[1].end) == str(expected.value)
    for place in (0, 2):
        lone = alone(RATES[place], shape, train, validation)
        assert_same(members[place], curves[place], *lone)


def test_the_weights_of_trials_that_ended_do_not_keep_the_stack_in_memory() -> None:
    members, _ = together(RATES, Shape(), three_outputs(83), three_outputs(40, seed=1))
    for member in members:
        for parameter in member.model.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.nbytes


def test_trials_may_slow_down_by_metrics_of_their_own() -> None:
    shape, train, validation = Shape(), three_outputs(83), three_outputs(40, seed=1)
    trials = [
        Trial(
            settings=replace(SETTINGS, plateau=Plateau(times=2, patience=0, factor=0.5, metric=metric, split="train"))
        )
        for metric in ("mcc", "log_loss")
    ]
    members = [trial.member(shape) for trial in trials]
    for member, trial in zip(members, trials, strict=True):
        assert trial.settings.plateau is not None
        member.model.decoder("kind").also_measure(trial.settings.plateau.metric)
    seen: list[EpochDone] = []
    fit_together(members, train, validation, on_epoch=lambda _, epoch: seen.append(epoch), on_end=lambda *_: None)
    assert {"mcc"} <= seen[0].metrics["train"]["kind"].keys()
    assert {"log_loss"} <= seen[1].metrics["train"]["kind"].keys()


def test_a_model_with_batch_norm_is_not_stacked() -> None:
    shape = Shape(layers=1, norm="batch")
    with pytest.raises(Unstackable, match="batch norm"):
        together(RATES[:2], shape, three_outputs(60), None)
    member = RATES[0].member(shape)
    assert alone(RATES[0], shape, three_outputs(60), None)[1].epochs  # as models that were tried and left may be
    assert obstacle(member, torch.device("cpu")) is None


@pytest.mark.parametrize("change", [{"mixed_precision": True}, {"accumulation": 2}])
def test_what_the_stacked_loop_does_not_do_is_told(change: dict[str, object]) -> None:
    member = replace(RATES[0], settings=replace(SETTINGS, **change)).member(Shape())
    assert obstacle(member, torch.device("cpu")) is not None
    assert obstacle(RATES[0].member(Shape()), torch.device("cpu")) is None


def test_every_setting_of_the_loop_is_one_that_the_stacked_loop_knows() -> None:
    assert "setting" not in (obstacle(RATES[0].member(Shape()), torch.device("cpu")) or "")


def test_dropout_on_a_gpu_is_not_stacked() -> None:
    dropping = Trial(dropout=0.5).member(Shape(layers=1))
    assert obstacle(dropping, torch.device("cuda")) is not None
    assert obstacle(dropping, torch.device("cpu")) is None
