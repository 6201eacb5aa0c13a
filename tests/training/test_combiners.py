from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cachestore.errors import ConfigError
from trainer.combiners import (
    ComparatorCombiner,
    ConcatCombiner,
    FtTransformerCombiner,
    GatedFusionCombiner,
    ProjectAggregateCombiner,
    TransformerCombiner,
)
from trainer.layers import Dropout

DIMS = {"text": 6, "plan": 3, "wait": 1}
COMPARED = {"entity_1": ("text",), "entity_2": ("plan", "wait")}
COMBINERS: list[Any] = [
    ConcatCombiner(),
    ConcatCombiner(num_fc_layers=2, residual=True),
    ProjectAggregateCombiner(),
    GatedFusionCombiner(hidden_size=8, num_fc_layers=1),
    *(
        TransformerCombiner(hidden_size=8, num_heads=2, num_layers=2, reduce_output=way)
        for way in ("mean", "sum", "max", "concat", "last")
    ),
    FtTransformerCombiner(hidden_size=8, num_heads=2, num_fc_layers=1),
    ComparatorCombiner(**COMPARED),
]


def vectors(rows: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, dim, generator=draw) for name, dim in DIMS.items()}


@pytest.mark.parametrize("settings", COMBINERS, ids=lambda settings: settings.type)
def test_every_combiner_gives_one_vector_that_depends_on_all_inputs(settings: Any) -> None:
    torch.manual_seed(0)
    combiner = settings.build(DIMS).eval()
    given = vectors()
    combined = combiner(given)
    assert combined.shape == (5, combiner.dim)
    combined.square().sum().backward() if combined.requires_grad else None
    assert all(parameter.grad is not None for parameter in combiner.parameters())
    for name in DIMS:
        moved = {**given, name: given[name] + 1}
        assert not torch.allclose(combiner(moved), combined)
    assert settings.linear == (not list(combiner.parameters()))


@pytest.mark.parametrize("settings", COMBINERS, ids=lambda settings: settings.type)
def test_rows_do_not_see_each_other(settings: Any) -> None:
    combiner = settings.build(DIMS).eval()
    given = vectors()
    alone = combiner({name: vector[2:3] for name, vector in given.items()})
    assert torch.allclose(combiner(given)[2:3], alone, atol=1e-5)


@pytest.mark.parametrize("settings", COMBINERS, ids=lambda settings: settings.type)
def test_all_random_numbers_are_drawn_by_the_one_dropout(settings: Any) -> None:
    combiner = settings.build(DIMS).train()
    for module in combiner.modules():
        assert not isinstance(module, nn.Dropout)
        if isinstance(module, Dropout):
            module.rate = 0.0
    given = vectors()
    assert torch.equal(combiner(given), combiner(given))


def test_one_input_is_enough_for_every_combiner() -> None:
    for settings in COMBINERS:
        if settings.type != "comparator":
            combiner = settings.build({"text": 6})
            assert combiner({"text": torch.randn(4, 6)}).shape == (4, combiner.dim)


def test_a_residual_layer_adds_what_entered_it_where_it_is_as_wide() -> None:
    combiner = ConcatCombiner(num_fc_layers=2, output_size=10, residual=True).build({"text": 10})
    for parameter in combiner.parameters():
        nn.init.zeros_(parameter)
    given = torch.randn(3, 10)
    assert torch.equal(combiner({"text": given}), given)


def test_equal_entities_of_one_width_come_out_equal() -> None:
    settings = ComparatorCombiner(entity_1=("one",), entity_2=("other",), output_size=7)
    combiner = settings.build({"one": 4, "other": 4})
    given = torch.randn(3, 4)
    first, second, difference, product = combiner({"one": given, "other": given}).split(7, dim=1)
    assert torch.equal(first, second)
    assert not difference.any()
    assert torch.equal(product, first * second)


def test_a_comparator_names_what_its_entities_lack() -> None:
    settings = ComparatorCombiner(entity_1=("txt",), entity_2=("plan",))
    with pytest.raises(ConfigError) as error:
        settings.build(DIMS)
    assert str(error.value).splitlines() == [
        "combiner.entity_1: there is no input 'txt'; did you mean 'text'?",
        "combiner: the input 'text' is in neither entity_1 nor entity_2; add it to one, or remove it",
        "combiner: the input 'wait' is in neither entity_1 nor entity_2; add it to one, or remove it",
    ]
    with pytest.raises(ValidationError, match="text is in entity_1 and in entity_2"):
        ComparatorCombiner(entity_1=("text",), entity_2=("text",))


def test_entities_of_different_widths_need_a_layer() -> None:
    with pytest.raises(ConfigError, match="entity_1 has 6 values and entity_2 4"):
        ComparatorCombiner(**COMPARED, num_fc_layers=0).build(DIMS)


def test_heads_divide_the_hidden_size() -> None:
    with pytest.raises(ValidationError, match="hidden_size 10 is not a multiple of num_heads 4"):
        TransformerCombiner(hidden_size=10, num_heads=4)
