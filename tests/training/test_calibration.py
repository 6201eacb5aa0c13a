from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.heads import CLASSES, DIM, clusters
from trainer import loop
from trainer.batches import CachedBatches
from trainer.calibration import calibrate
from trainer.combiners import ConcatCombiner
from trainer.decoders import (
    BinaryRegressor,
    BinaryWeightedCrossEntropy,
    CategoryClassifier,
    Decoder,
    SetClassifier,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
)
from trainer.model import Model


def overconfident(kind: str, *, calibration: bool = True) -> tuple[Model, CachedBatches]:
    """A model whose scores tell the targets well and are five times as large as they should be."""
    vectors, classes = clusters(600, noise=2.0)
    torch.manual_seed(0)
    decoder: Decoder
    match kind:
        case "category":
            decoder = CategoryClassifier().build(
                DIM, CLASSES, SoftmaxCrossEntropy(), top_k=1, where="out", calibration=calibration
            )
            targets: Tensor = classes
        case "binary":
            decoder = BinaryRegressor().build(DIM, BinaryWeightedCrossEntropy(), 0.5, calibration=calibration)
            targets = (classes == 1).float()
        case _:
            decoder = SetClassifier().build(DIM, CLASSES, SigmoidCrossEntropy(), 0.5, "out", calibration=calibration)
            targets = nn.functional.one_hot(classes, 3).float()
    model = Model({"text": nn.Identity()}, (), ConcatCombiner().build({"text": DIM}), {"out": decoder}, {"out": 1.0})
    batches = CachedBatches({"text": vectors}, {"out": targets})
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        decoder.loss(decoder(vectors), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(5)
    return model, batches


def loss(model: Model, batches: CachedBatches) -> float:
    return loop.evaluate(model, batches)["out"]["loss"]


@pytest.mark.parametrize("kind", ["category", "binary", "set"])
def test_the_temperature_is_that_of_the_least_log_loss(kind: str) -> None:
    model, batches = overconfident(kind)
    before, order = loss(model, batches), loop.predict(model, batches)["out"]
    temperature = calibrate(model, batches)["out"]
    assert temperature == pytest.approx(5, rel=0.3)
    least = loss(model, batches)
    assert least < before
    held = model.decoder("out").temperature
    assert held is not None
    for factor in (0.9, 1.1):
        held.fill_(temperature * factor)
        assert loss(model, batches) > least
    held.fill_(temperature)
    after = loop.predict(model, batches)["out"]
    if kind == "category":
        assert torch.equal(after.argmax(dim=1), order.argmax(dim=1))
    else:
        assert torch.equal(after > 0.5, order > 0.5)
    assert calibrate(model, batches)["out"] == pytest.approx(temperature)  # whatever it was before


def test_the_temperature_is_kept_with_the_weights_and_only_where_it_is_asked_for() -> None:
    model, batches = overconfident("category")
    calibrate(model, batches)
    again, _ = overconfident("category")
    again.load_state_dict(model.state_dict())
    assert torch.equal(loop.predict(again, batches)["out"], loop.predict(model, batches)["out"])
    plain, _ = overconfident("category", calibration=False)
    assert calibrate(plain, batches) == {}
    assert not [name for name in plain.state_dict() if "temperature" in name]


def test_training_goes_on_without_the_temperature() -> None:
    model, batches = overconfident("category")
    calibrate(model, batches)
    decoder, vectors = model.decoder("out"), batches.inputs["text"]
    trained = decoder.train()(vectors)
    assert torch.allclose(trained / decoder.temperature, decoder.eval()(vectors))


@pytest.mark.parametrize("kind", ["category", "binary"])
def test_a_few_rows_that_are_all_predicted_right_do_not_make_predictions_certain(kind: str) -> None:
    model, batches = overconfident(kind)
    vectors = batches.inputs["text"][:40]
    found = loop.predict(model, CachedBatches({"text": vectors}))["out"]
    said = found.argmax(dim=1) if kind == "category" else (found > 0.5).float()
    calibrate(model, CachedBatches({"text": vectors}, {"out": said}))
    sure = loop.predict(model, CachedBatches({"text": vectors}))["out"]
    assert 0.9 < (sure.amax(dim=1) if kind == "category" else torch.maximum(sure, 1 - sure)).mean() < 0.99
