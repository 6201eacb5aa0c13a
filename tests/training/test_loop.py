from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
import torch
from torch import nn

from cachestore.errors import ConfigError, DataError, TrainingDiverged
from tests.training.heads import CLASSES, DIM, classifier, clusters, three_decoders, three_outputs
from trainer.batches import CachedBatches
from trainer.combiners import ConcatCombiner
from trainer.decoders import BinaryRegressor, BinaryWeightedCrossEntropy
from trainer.loop import EpochDone, FitResult, FitSettings, evaluate, fit, predict
from trainer.metrics import COMBINED
from trainer.model import Model
from trainer.optim import Adam, Schedule

SETTINGS = FitSettings(
    epochs=4, batch_size=16, learning_rate=0.02, validation_field="kind", validation_metric="accuracy"
)


def kinds(rows: int, seed: int = 0, noise: float = 0.5) -> CachedBatches:
    vectors, targets = clusters(rows, seed, noise)
    return CachedBatches({"text": vectors}, {"kind": targets})


def run(
    model: Model, train: CachedBatches, validation: CachedBatches | None = None, **changes: object
) -> tuple[FitResult, list[EpochDone]]:
    epochs: list[EpochDone] = []
    settings = dataclasses.replace(SETTINGS, **changes)  # type: ignore[arg-type]
    optimizer = Adam(model.parameters())
    return fit(model, train, validation, optimizer=optimizer, settings=settings, on_epoch=epochs.append), epochs


def test_the_loop_takes_the_steps_of_a_loop_written_by_hand() -> None:
    train = kinds(50)
    model, linear = classifier(seed=1), nn.Linear(8, 3)
    decoder = model.decoder("kind")
    linear.load_state_dict(decoder.scores.state_dict())  # type: ignore[union-attr, operator]
    run(model, train, seed=5)

    optimizer = torch.optim.Adam(linear.parameters(), lr=0.02, fused=True)
    order = torch.Generator().manual_seed(5)
    for _ in range(4):
        rows = torch.randperm(50, generator=order)
        for start in range(0, 50, 16):
            picked = rows[start : start + 16]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(linear(train.inputs["text"][picked]), train.targets["kind"][picked])
            loss.backward()
            optimizer.step()
    assert torch.equal(decoder.scores.weight, linear.weight)  # type: ignore[union-attr]


def test_it_learns_every_kind_of_output_at_once() -> None:
    model, train, held_out = three_decoders(), three_outputs(400), three_outputs(200, seed=1)
    _, epochs = run(model, train, held_out, epochs=30)
    metrics = epochs[-1].metrics["validation"]
    assert metrics["kind"]["accuracy"] > 0.9
    assert metrics["is_bee"]["roc_auc"] > 0.9
    assert metrics["size"]["r2"] > 0.9
    losses = [metrics[name]["loss"] for name in ("kind", "is_bee", "size")]
    assert metrics[COMBINED]["loss"] == pytest.approx(sum(losses))


def test_loss_weights_scale_the_sum_and_not_the_parts() -> None:
    weights = {"kind": 2.0, "is_bee": 1.0, "size": 0.0}
    plain, weighted = (
        evaluate(three_decoders(), three_outputs(60)),
        evaluate(three_decoders(weights), three_outputs(60)),
    )
    assert weighted["kind"] == plain["kind"]
    expected = 2 * plain["kind"]["loss"] + plain["is_bee"]["loss"]
    assert weighted[COMBINED]["loss"] == pytest.approx(expected)


def test_a_loss_of_weight_zero_trains_nothing() -> None:
    model = three_decoders({"kind": 1.0, "is_bee": 1.0, "size": 0.0})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model, three_outputs(60))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in moved} == {"feature:kind", "feature:is_bee"}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_same_seed_gives_the_same_weights(dropout: float) -> None:
    states = []
    for seed in (1, 1, 2):
        model = classifier(layers=1, dropout=dropout)
        torch.rand(seed)  # what the caller draws meanwhile changes nothing
        run(model, kinds(70), seed=seed)
        states.append(torch.cat([tensor.flatten() for tensor in model.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_the_callers_random_state_and_threads_are_left_alone() -> None:
    model = classifier(layers=1, dropout=0.3)
    torch.manual_seed(11)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(11)
    run(model, kinds(40))
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads


def test_early_stop_counts_epochs_without_improvement_and_restores_the_best_weights() -> None:
    train, validation = kinds(40, noise=3.0), kinds(200, seed=1, noise=3.0)
    model = classifier(layers=1)
    fitted, epochs = run(model, train, validation, epochs=200, early_stop=3, learning_rate=0.05)
    values = [epoch.metrics["validation"]["kind"]["accuracy"] for epoch in epochs]
    best = values.index(max(values))
    assert fitted.best_epoch == best + 1
    assert fitted.epochs == len(epochs) == best + 1 + 3 < 200
    assert evaluate(model, validation)["kind"]["accuracy"] == max(values)
    assert [epoch.best for epoch in epochs[best:]] == [True, False, False, False]


def test_early_stop_can_be_off_and_needs_a_validation_set() -> None:
    assert run(classifier(), kinds(40), kinds(20), epochs=25, early_stop=-1)[0].epochs == 25
    fitted, epochs = run(classifier(), kinds(40), None, epochs=25, early_stop=1)
    assert fitted == FitResult(25, 25, fitted.seconds, epochs[-1].metrics)
    assert "validation" not in epochs[-1].metrics


def test_a_metric_to_minimise_picks_its_lowest_epoch() -> None:
    train, validation = kinds(30, noise=3.0), kinds(100, seed=1, noise=3.0)
    fitted, epochs = run(classifier(), train, validation, epochs=60, early_stop=-1, validation_metric="loss")
    losses = [epoch.metrics["validation"]["kind"]["loss"] for epoch in epochs]
    assert fitted.best_epoch == losses.index(min(losses)) + 1


def test_training_metrics_are_running_ones_unless_the_set_is_evaluated() -> None:
    _, running = run(classifier(), kinds(64), epochs=1)
    model = classifier()
    _, after = run(model, kinds(64), epochs=1, evaluate_training_set=True)
    assert after[0].metrics["train"] == evaluate(model, kinds(64))
    assert running[0].metrics["train"]["kind"]["loss"] > after[0].metrics["train"]["kind"]["loss"]


def test_evaluation_does_not_depend_on_the_batch_size() -> None:
    model, rows = three_decoders(), three_outputs(53)
    whole = evaluate(model, rows, 53)
    for size in (1, 8, 52):
        for name, metrics in evaluate(model, rows, size).items():
            assert metrics == pytest.approx(whole[name], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 52, 100])
def test_the_loss_of_a_split_is_torchs_over_all_rows_whatever_the_batches(batch_size: int) -> None:
    weights = {"ant": 8.0, "bee": 0.1, "cat": 1.0}
    model, rows = classifier(class_weights=weights), kinds(53)
    scores = model(next(rows.in_order(53))).scores["kind"]
    expected = nn.functional.cross_entropy(scores, rows.targets["kind"], weight=torch.tensor(list(weights.values())))
    assert evaluate(model, rows, batch_size)["kind"]["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 52, 100])
def test_the_weighted_binary_loss_is_torchs_over_all_rows_too(batch_size: int) -> None:
    vectors, targets = clusters(53)
    rows = CachedBatches({"text": vectors}, {"is_bee": (targets == 1).float()})
    decoder = BinaryRegressor().build(DIM, BinaryWeightedCrossEntropy(positive_class_weight=9.0), 0.5)
    model = Model(
        {"text": nn.Identity()}, (), ConcatCombiner().build({"text": DIM}), {"is_bee": decoder}, {"is_bee": 1.0}
    )
    scores = model(next(rows.in_order(53))).scores["is_bee"]
    expected = nn.functional.binary_cross_entropy_with_logits(
        scores, rows.targets["is_bee"], pos_weight=torch.tensor(9.0)
    )
    assert evaluate(model, rows, batch_size)["is_bee"]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_many_scores_are_reduced_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = three_decoders(), three_outputs(53)
    whole = evaluate(model, rows, 8)
    monkeypatch.setattr("trainer.tally._PENDING_SCORES", 60)
    assert evaluate(model, rows, 8) == whole


def test_predictions_are_probabilities_and_values_in_the_order_of_the_rows() -> None:
    model, rows = three_decoders(), three_outputs(30)
    found = predict(model, rows, 7)
    assert found["kind"].shape == (30, len(CLASSES))
    assert torch.allclose(found["kind"].sum(dim=1), torch.ones(30))
    assert ((found["is_bee"] >= 0) & (found["is_bee"] <= 1)).all()
    batch = next(rows.in_order(30))
    model.eval()
    assert torch.allclose(found["size"], model(batch).scores["size"].detach(), atol=1e-6)


def test_predicting_needs_no_targets() -> None:
    rows = three_outputs(5)
    assert predict(three_decoders(), CachedBatches(rows.inputs))["size"].shape == (5,)


@pytest.mark.parametrize("many", [False, True])
def test_a_loss_that_is_not_finite_names_epoch_step_and_rate(many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if many:  # then it is seen within the epoch
        monkeypatch.setattr("trainer.tally._PENDING_SCORES", 1)
    train = kinds(48)
    train.inputs["text"][:] = 1e30
    with pytest.raises(
        TrainingDiverged, match=r"epoch 1, step \d of it, at learning rate 1e\+20\. Set a lower"
    ) as caught:
        run(classifier(layers=1), train, learning_rate=1e20)
    assert isinstance(caught.value, ConfigError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_an_undefined_validation_metric_is_an_error_with_a_way_out() -> None:
    validation = three_outputs(20)
    validation.targets["is_bee"].zero_()
    with pytest.raises(DataError, match="roc_auc of 'is_bee' is undefined"):
        run(three_decoders(), three_outputs(60), validation, validation_field="is_bee", validation_metric="roc_auc")


def test_the_learning_rate_follows_its_schedule_by_steps() -> None:
    _, epochs = run(classifier(), kinds(64), epochs=4, schedule=Schedule("linear", warmup_fraction=0.5))
    # 16 steps, 8 of them warm-up; each epoch reports the rate of its last step
    assert [epoch.learning_rate / 0.02 for epoch in epochs] == pytest.approx([3 / 8, 7 / 8, 5 / 8, 1 / 8])


def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    plain, mixed = classifier(), classifier()
    run(plain, kinds(200), epochs=10)
    run(mixed, kinds(200), epochs=10, mixed_precision=True)
    weight, reference = mixed.decoder("kind").scores.weight, plain.decoder("kind").scores.weight  # type: ignore[union-attr]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, reference)
    assert torch.allclose(weight, reference, atol=0.02)  # type: ignore[arg-type]
    assert evaluate(mixed, kinds(100, seed=1), mixed_precision=True)["kind"]["accuracy"] > 0.9


def test_an_interrupt_passes_through_after_the_epochs_done_were_reported() -> None:
    done: list[int] = []

    def interrupt(epoch: EpochDone) -> None:
        done.append(epoch.epoch)
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    model = classifier()
    with pytest.raises(KeyboardInterrupt):
        fit(model, kinds(40), None, optimizer=Adam(model.parameters()), settings=SETTINGS, on_epoch=interrupt)
    assert done == [1, 2]


def test_a_metric_no_row_defines_is_nan_not_an_error() -> None:
    rows = three_outputs(20)
    rows.targets["is_bee"].zero_()
    assert math.isnan(evaluate(three_decoders(), rows)["is_bee"]["roc_auc"])


def test_weights_that_the_last_step_of_an_epoch_spoilt_end_the_fit() -> None:
    train, validation = kinds(16), kinds(16, seed=1)
    validation.inputs["text"][:] *= 1e30
    with pytest.raises(TrainingDiverged, match="loss of the validation rows is not finite at epoch 1, step 1 of it"):
        run(classifier(), train, validation, learning_rate=1e30)
