from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn

from cachestore.errors import ConfigError, TrainingDiverged
from tests.training.heads import CLASSES, classifier, clusters, three_decoders, three_outputs
from tests.training.test_loop import kinds
from trainer.batches import CachedBatches
from trainer.combiners import ConcatCombiner
from trainer.config import load_config
from trainer.decoders import NumberRegressor, RootMeanSquaredError
from trainer.fitting import build_optimizer, fit_settings
from trainer.full_batch import FullBatch
from trainer.loop import EpochDone, FitResult, evaluate, fit
from trainer.model import Model
from trainer.optim import Lbfgs, Penalty
from trainer.strategies import trained_of


def problem() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    vectors, targets = clusters(200, noise=2.0)
    return nn.Linear(8, 3), vectors, targets


@pytest.mark.parametrize("search", [True, False])
def test_the_weights_are_those_of_torchs_class_bit_for_bit(search: bool) -> None:
    (mine, vectors, targets), (reference, *_) = problem(), problem()
    ours = Lbfgs(mine.parameters(), max_iter=7, history_size=4, line_search=search)
    theirs = torch.optim.LBFGS(
        reference.parameters(), max_iter=7, history_size=4, line_search_fn="strong_wolfe" if search else None
    )

    def value(model: nn.Linear, optimizer: Any) -> float:
        model.zero_grad()
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(vectors), targets)
            loss.backward()
        return loss.item()

    rate = 1.0 if search else 0.1
    theirs.param_groups[0]["lr"] = rate
    for _ in range(3):
        ours.step(rate, lambda: value(mine, ours))
        theirs.step(lambda: value(reference, theirs))
        assert torch.equal(mine.weight, reference.weight)
    assert not ours.converged


def test_the_state_continues_where_it_stood() -> None:
    whole, halves = classifier(), classifier()
    train = kinds(80, noise=2.0)
    first = Lbfgs(halves.parameters(), max_iter=3)
    rest = Lbfgs(halves.parameters(), max_iter=3)
    optimizer = Lbfgs(whole.parameters(), max_iter=3)
    for step in range(4):
        optimizer.step(1.0, FullBatch(whole, train, 50, Penalty(l2=1e-3)))
        if step == 2:
            rest.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
            first = rest
        first.step(1.0, FullBatch(halves, train, 50, Penalty(l2=1e-3)))
    for left, right in zip(whole.parameters(), halves.parameters(), strict=True):
        assert torch.equal(left, right)


def converge(model: Model, train: CachedBatches, **changes: Any) -> tuple[FitResult, list[EpochDone]]:
    section = {"optimizer": "lbfgs", **changes}
    config = load_config(
        {
            "input_features": [{"name": "text", "type": "text", "encoder": "hashing"}],
            "output_features": [{"name": "kind", "type": "category"}],
            "trainer": section,
        }
    )
    epochs: list[EpochDone] = []
    settings = fit_settings(config, model, train)
    optimizer = build_optimizer(config, trained_of(model))
    return fit(model, train, None, optimizer=optimizer, settings=settings, on_epoch=epochs.append), epochs


@pytest.mark.parametrize("strength", [0.1, 10.0])
def test_a_linear_head_ends_at_scikit_learns_optimum(strength: float) -> None:
    train = kinds(300, noise=2.0)
    vectors, targets = train.inputs["text"].numpy(), train.targets["kind"].numpy()
    reference = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(vectors.astype(np.float64), targets)
    model = classifier()
    fitted, epochs = converge(model, train, regularization_lambda=1 / (2 * strength * len(targets)))
    assert fitted.epochs < 100
    found = epochs[-1].metrics["train"]["kind"]["loss"]
    assert found == pytest.approx(log_loss(targets, reference.predict_proba(vectors)), rel=1e-4)
    weight = model.decoder("kind").scores.weight.detach().numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(weight, reference.coef_, atol=2e-3)


def test_how_many_rows_pass_at_once_changes_nothing_but_rounding() -> None:
    rows = three_outputs(53)
    weights = {"kind": 2.0, "is_bee": 0.5, "size": 1.0}
    values, gradients = [], []
    for size in (7, 53):
        model = three_decoders(weights)
        values.append(FullBatch(model, rows, size, Penalty(l2=0.1))())
        gradients.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_class_weights_weigh_over_all_rows() -> None:
    weights = {"ant": 8.0, "bee": 0.1, "cat": 1.0}
    rows = kinds(53)
    values = [FullBatch(classifier(class_weights=weights), rows, size, Penalty())() for size in (5, 53)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[1] == pytest.approx(evaluate(classifier(class_weights=weights), rows)["kind"]["loss"], rel=1e-6)


def test_it_reports_metrics_of_the_weights_after_each_epoch() -> None:
    model, train = classifier(), kinds(100, noise=2.0)
    _, epochs = converge(model, train, epochs=2, optimizer={"type": "lbfgs", "max_iter": 2})
    assert epochs[-1].metrics["train"] == evaluate(model, train)
    assert len(epochs) == 2
    assert epochs[0].learning_rate == 1.0


def test_what_changes_the_loss_by_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer.optimizer.type: lbfgs needs a loss .* set dropout to 0"):
        converge(classifier(layers=1, dropout=0.1), kinds(20))


def test_a_loss_that_is_not_finite_is_told() -> None:
    train = kinds(40)
    train.inputs["text"][:] = math.inf
    with pytest.raises(TrainingDiverged, match="epoch 1"):
        converge(classifier(), train)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"gradient_clipping": {"clipnorm": 1.0}}, "gradient_clipping bends"),
        ({"use_mixed_precision": True}, "too coarse"),
        ({"learning_rate": "range_test"}, "no meaning for lbfgs"),
        ({"gradient_accumulation_steps": 2}, "every step sees all rows"),
    ],
)
def test_settings_that_cannot_go_with_it_are_named(section: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        converge(classifier(), kinds(20), **section)


def test_a_root_of_a_mean_is_refused_where_rows_pass_in_parts() -> None:
    decoder = NumberRegressor().build(8, RootMeanSquaredError(), restore=None)
    model = Model({"text": nn.Identity()}, (), ConcatCombiner().build({"text": 8}), {"kind": decoder}, {"kind": 1.0})
    rows = CachedBatches({"text": torch.randn(50, 8)}, {"kind": torch.randn(50)})
    assert converge(model, rows, epochs=1)[0].epochs == 1
    with pytest.raises(ConfigError, match=r"lbfgs takes 50 rows 20 at a time, .* use mean_squared_error"):
        converge(model, rows, epochs=1, batch_size=20)


def test_the_mapping_of_c_leaves_the_bias_free() -> None:
    model = classifier()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    assert Penalty(l2=1.0).value(list(model.parameters())).item() == 8 * len(CLASSES)
