from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from trainer.batches import Batch
from trainer.combiners import ConcatCombiner
from trainer.decoders import (
    CategoryClassifier,
    MeanSquaredError,
    NumberRegressor,
    SoftmaxCrossEntropy,
)
from trainer.encoders import Embedding, OneHot
from trainer.layers import Dropout, FcLayerSettings
from trainer.model import Model


def test_every_input_reaches_the_combiner_in_order_with_its_indicator() -> None:
    combiner = ConcatCombiner().build({"text": 4, "plan": 3, "wait": 1})
    model = Model({"text": nn.Identity(), "plan": OneHot(3), "wait": nn.Identity()}, {"text"}, combiner, {}, {})
    batch = Batch(
        2,
        {
            "text": torch.tensor([[1.0, 2, 3], [0, 0, 0]]),
            "plan": torch.tensor([2, 0]),
            "wait": torch.tensor([[5.0], [6]]),
        },
        {"text": torch.tensor([[0.0], [1]])},
        {},
    )
    vectors = model.encode(batch)
    assert combiner(vectors).tolist() == [[1, 2, 3, 0, 0, 0, 1, 5], [0, 0, 0, 1, 1, 0, 0, 6]]


@pytest.mark.parametrize("name", ["type", "keys", "training", "a.b", "50%", "Recommended IND", ""])
def test_a_feature_may_have_any_name(name: str) -> None:
    decoder = NumberRegressor().build(2, MeanSquaredError(), None)
    model = Model({name: nn.Linear(2, 2)}, (), ConcatCombiner().build({name: 2}), {name: decoder}, {name: 1.0})
    output = model(Batch(3, {name: torch.ones(3, 2)}, {}, {name: torch.zeros(3)}))
    assert output.scores[name].shape == (3,)
    assert model.decoder(name) is decoder


def test_names_that_differ_keep_different_modules() -> None:
    names = ("a.b", "a%2Eb", "a%b")
    model = Model({name: nn.Linear(1, 1) for name in names}, (), nn.Identity(), {}, {})
    assert len(model.encoders) == 3


def test_a_category_embedding_starts_at_about_length_one() -> None:
    torch.manual_seed(0)
    lengths = Embedding(200, 50)(torch.arange(200)).norm(dim=1)
    assert lengths.mean().item() == pytest.approx(1, abs=0.1)


def kinds_of(stack: nn.Module) -> list[str]:
    return [type(module).__name__ for module in stack.modules() if not list(module.children())]


def test_concat_alone_adds_no_layer() -> None:
    combiner = ConcatCombiner().build({"a": 3, "b": 2})
    assert combiner.dim == 5
    assert not list(combiner.parameters())


def test_concat_layers_are_linear_norm_activation_dropout() -> None:
    settings = ConcatCombiner(num_fc_layers=2, output_size=7, activation="tanh", dropout=0.1, norm="layer")
    combiner = settings.build({"a": 3})
    assert combiner.dim == 7
    assert kinds_of(combiner) == ["Linear", "LayerNorm", "Tanh", "Dropout"] * 2


def test_fc_layers_take_what_they_leave_out_from_the_combiner() -> None:
    settings = ConcatCombiner(
        activation="gelu",
        norm="batch",
        fc_layers=(FcLayerSettings(output_size=9), FcLayerSettings(activation="elu", dropout=0.2)),
        output_size=4,
        num_fc_layers=7,
    )
    combiner = settings.build({"a": 3})
    assert kinds_of(combiner) == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "ELU", "Dropout"]
    assert [module.out_features for module in combiner.modules() if isinstance(module, nn.Linear)] == [9, 4]


def test_a_dropout_of_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="dropout"):
        ConcatCombiner(dropout=1.0)


def test_decoder_layers_stand_before_the_scores() -> None:
    settings = CategoryClassifier(num_fc_layers=1, fc_output_size=5, fc_dropout=0.1, fc_norm="layer")
    decoder = settings.build(3, ("x", "y"), SoftmaxCrossEntropy(), top_k=3, where="kind")
    assert kinds_of(decoder) == ["Linear", "LayerNorm", "ReLU", "Dropout", "Linear"]
    assert decoder(torch.zeros(2, 3)).shape == (2, 2)


def test_dropout_draws_exactly_as_torchs_does() -> None:
    values = torch.randn(7, 5)
    for training in (True, False):
        outcomes = []
        for module in (Dropout(0.3), nn.Dropout(0.3)):
            torch.manual_seed(5)
            outcomes.append(module.train(training)(values))
        assert torch.equal(*outcomes)
