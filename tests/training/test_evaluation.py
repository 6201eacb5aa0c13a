from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor, nn

from tests.training.heads import DIM, three_decoders, three_outputs
from trainer import bootstrap, classwise, loop, metrics
from trainer.batches import CachedBatches
from trainer.bootstrap import Bootstrap
from trainer.checkpoint import plain
from trainer.combiners import ConcatCombiner
from trainer.decoders import (
    BinaryRegressor,
    BinaryWeightedCrossEntropy,
    CategoryClassifier,
    Decoder,
    MeanSquaredError,
    NumberRegressor,
    SetClassifier,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    VectorProjector,
)
from trainer.evaluation import final
from trainer.model import Model

NAMES = tuple("abcdefg")

MEASURED = """
import resource
import torch
from torch import nn
from trainer.batches import CachedBatches
from trainer.combiners import ConcatCombiner
from trainer.decoders import CategoryClassifier, SoftmaxCrossEntropy
from trainer.evaluation import final
from trainer.model import Model

names = tuple(map(str, range(77)))
kind = CategoryClassifier().build(8, names, SoftmaxCrossEntropy(), top_k=3, where="kind")
model = Model({"text": nn.Identity()}, (), ConcatCombiner().build({"text": 8}), {"kind": kind}, {"kind": 1.0})

def evaluate(rows):
    final(model, CachedBatches({"text": torch.randn(rows, 8)}, {"kind": torch.randint(77, (rows,))}))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = evaluate(10)
print(evaluate(12_000) - before)
"""


def model_of(decoders: Mapping[str, Decoder]) -> Model:
    combiner = ConcatCombiner().build({"text": DIM})
    return Model({"text": nn.Identity()}, (), combiner, decoders, dict.fromkeys(decoders, 1.0))


def kinds_and_tags(rows: int = 400) -> tuple[Model, CachedBatches]:
    torch.manual_seed(1)
    model = model_of(
        {
            "kind": CategoryClassifier().build(DIM, NAMES, SoftmaxCrossEntropy(), top_k=2, where="kind"),
            "tags": SetClassifier().build(DIM, NAMES, SigmoidCrossEntropy(), 0.5, "tags"),
            "where": VectorProjector().build(DIM, 2, MeanSquaredError()),
        }
    )
    vectors = torch.randn(rows, DIM)
    targets = {
        "kind": vectors[:, :6].argmax(dim=1),  # the last class never occurs
        "tags": (vectors[:, :7] + torch.randn(rows, 7) > 0.8).float(),
        "where": vectors[:, :2],
    }
    return model, CachedBatches({"text": vectors}, targets)


def scores_of(model: Model, batches: CachedBatches) -> dict[str, Tensor]:
    return loop.predict(model, batches)


def test_a_final_evaluation_has_every_metric_of_every_output_and_agrees_with_the_loops() -> None:
    for model, batches in (kinds_and_tags(), (three_decoders(), three_outputs(300))):
        found = final(model, batches)
        epoch = loop.evaluate(model, batches)
        for name, values in found.values().items():
            assert values == pytest.approx({**values, **epoch[name]}, rel=1e-6)
        for name, output in found.outputs.items():
            assert tuple(output.metrics) == model.decoder(name).metric_names
            for metric, estimate in output.metrics.items():
                if metric == "loss":  # alone has no interval
                    continue
                least, most = metrics.RANGES[metric]
                assert least <= estimate.low <= estimate.high <= most
                assert estimate.low <= estimate.value <= estimate.high or metric == "ece"  # which resampling raises
        assert json.dumps(plain(found.to_json()), allow_nan=False)


def test_confusion_and_classes_are_those_of_scikit_learn() -> None:
    model, batches = kinds_and_tags()
    scores = scores_of(model, batches)
    found = final(model, batches)
    so, said = batches.targets["kind"], scores["kind"].argmax(dim=1)
    confusion = found.outputs["kind"].confusion
    assert confusion is not None
    assert confusion["labels"] == list(NAMES)
    counts = reference.confusion_matrix(so, said, labels=range(7))
    assert confusion["counts"] == counts.tolist()
    most = max((counts[one, other], -one, -other) for one in range(7) for other in range(7) if one != other)
    first = confusion["pairs"][0]
    assert first == {"actual": NAMES[-most[1]], "predicted": NAMES[-most[2]], "rows": most[0]}
    precision, recall, f1, rows = reference.precision_recall_fscore_support(so, said, labels=range(7), zero_division=0)
    for at, line in enumerate(found.outputs["kind"].classes):
        wanted = {"precision": precision[at], "recall": recall[at], "f1": f1[at], "rows": rows[at]}
        assert {key: line[key] for key in wanted} == pytest.approx(wanted)
        if rows[at]:
            area = reference.roc_auc_score(so == at, scores["kind"][:, at])
            assert line["roc_auc"] == pytest.approx(area, abs=1e-9)
    tags = scores["tags"] >= 0.5
    precision, recall, f1, rows = reference.precision_recall_fscore_support(
        batches.targets["tags"], tags, zero_division=0
    )
    for at, line in enumerate(found.outputs["tags"].classes):
        wanted = {"precision": precision[at], "recall": recall[at], "f1": f1[at], "rows": rows[at]}
        assert {key: line[key] for key in wanted} == pytest.approx(wanted)


def test_a_binary_output_tells_its_classes_by_the_words_of_the_data() -> None:
    decoder = BinaryRegressor().build(DIM, BinaryWeightedCrossEntropy(), 0.6, ("no", "yes"))
    vectors = torch.randn(200, DIM)
    batches = CachedBatches({"text": vectors}, {"answer": (vectors[:, 0] > 0).float()})
    model = model_of({"answer": decoder})
    output = final(model, batches).outputs["answer"]
    said = scores_of(model, batches)["answer"] >= 0.6
    assert output.confusion is not None
    assert output.confusion["labels"] == ["no", "yes"]
    assert output.confusion["counts"] == reference.confusion_matrix(batches.targets["answer"] > 0.5, said).tolist()
    assert [line["class"] for line in output.classes] == ["no", "yes"]
    assert output.classes[1]["recall"] == pytest.approx(output.metrics["recall"].value)
    assert sum(line["rows"] for line in output.calibration) == 200
    assert output.threshold == 0.6


def test_classes_a_few_at_a_time_give_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = kinds_and_tags()
    whole = final(model, batches)
    monkeypatch.setattr(classwise, "_KEPT_AT_ONCE", 3 * batches.rows)
    monkeypatch.setattr(classwise, "_RANKED_AT_ONCE", 2 * batches.rows)
    monkeypatch.setattr(bootstrap, "_NUMBERS_AT_ONCE", 7 * batches.rows)
    parts = final(model, batches)
    for name, output in whole.outputs.items():
        for metric, estimate in output.metrics.items():
            found = parts.outputs[name].metrics[metric].to_json()
            assert found == pytest.approx(estimate.to_json(), rel=1e-9, nan_ok=True)
        assert str(parts.outputs[name].classes) == str(output.classes)  # NaN is not equal to itself


def test_an_evaluation_of_thousands_of_rows_takes_some_tens_of_megabytes() -> None:
    """A run with a memory_limit ends with one."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, timeout=100, check=True)
    assert int(done.stdout) < 100_000_000


@pytest.mark.parametrize(("rows", "resampled"), [(2000, 5000), (4000, 1000)])
def test_the_interval_of_a_mean_is_that_of_its_standard_error(
    rows: int, resampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLED_ROWS", resampled)
    right = torch.rand(rows, generator=torch.Generator().manual_seed(3)) < 0.3
    resamples = Bootstrap(rows, 0, torch.device("cpu"))
    picked = resamples.pick(right)
    value = right.double().mean().item()
    found = resamples.around({"accuracy": value}, lambda weights: {"accuracy": metrics.mean(picked, weights)})[
        "accuracy"
    ]
    error = math.sqrt(value * (1 - value) / rows)
    assert found.low == pytest.approx(value - 1.96 * error, abs=0.35 * error)
    assert found.high == pytest.approx(value + 1.96 * error, abs=0.35 * error)


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision"])
@pytest.mark.parametrize("name", ["kind", "tags"])
def test_the_interval_of_a_ranking_of_each_class_is_that_of_resampled_rows(name: str, metric: str) -> None:
    model, batches = kinds_and_tags(300)
    found = final(model, batches).outputs[name].metrics[metric]
    decoder = model.decoder(name)
    logits = torch.cat([output.scores[name] for _, output in loop.outputs(model, batches, None, False)])
    observed = decoder.observe(logits, batches.targets[name], [metric])
    resamples = Bootstrap(300, 1, torch.device("cpu"))
    whole = resamples.around({metric: found.value}, lambda weights: decoder.measure(observed, [metric], weights))
    # resampling repeats rows, which raises average precision: as wide, but not as high
    assert found.high - found.low == pytest.approx(whole[metric].high - whole[metric].low, rel=0.15)
    if metric == "roc_auc":
        assert found.low == pytest.approx(whole[metric].low, abs=0.01)


def test_no_interval_goes_beyond_what_a_metric_can_be() -> None:
    right = torch.ones(1000, dtype=torch.bool)
    right[0] = False
    resamples = Bootstrap(1000, 0, torch.device("cpu"))
    found = resamples.around({"accuracy": 1.0}, lambda weights: {"accuracy": metrics.mean(right, weights)})
    assert found["accuracy"].high == 1.0


def test_rows_whose_number_is_zero_are_counted() -> None:
    decoder = NumberRegressor().build(DIM, MeanSquaredError(), None)
    batches = CachedBatches({"text": torch.randn(6, DIM)}, {"cost": torch.tensor([0.0, 1.0, 0.0, 2.0, 3.0, 4.0])})
    found = final(model_of({"cost": decoder}), batches).outputs["cost"]
    assert found.zero_targets == found.to_json()["zero_targets"] == 2
    assert found.metrics["mean_absolute_percentage_error"].value < 1e3


def test_intervals_depend_on_the_seed_alone() -> None:
    model, batches = kinds_and_tags(100)
    one, same, other = (final(model, batches, seed=seed).outputs["kind"].metrics["log_loss"] for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_one_row_and_one_class_are_evaluated() -> None:
    decoder = CategoryClassifier().build(DIM, ("only",), SoftmaxCrossEntropy(), top_k=3, where="kind")
    batches = CachedBatches({"text": torch.randn(1, DIM)}, {"kind": torch.zeros(1, dtype=torch.int64)})
    found = final(model_of({"kind": decoder}), batches).outputs["kind"].metrics
    assert found["accuracy"].value == found["accuracy"].low == found["accuracy"].high == 1.0
    assert math.isnan(found["roc_auc"].value)
