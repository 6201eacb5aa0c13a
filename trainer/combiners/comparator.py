"""The comparator combiner: two entities, each made of some inputs, side by side with how they differ and agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field, NonNegativeInt, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from cachestore.errors import ConfigError, nearest
from trainer.combiners.concat import side_by_side
from trainer.layers import FcLayer, FcSettings, FullyConnected

Entity: TypeAlias = Annotated[tuple[str, ...], Field(min_length=1)]


class ComparatorCombiner(FcSettings):
    """``entity_1`` and ``entity_2`` name the inputs of each; entities of one width go through one and the same stack.

    So equal entities come out equal; Ludwig gives each entity a stack of its own.
    """

    type: Literal["comparator"] = "comparator"
    entity_1: Entity
    entity_2: Entity
    num_fc_layers: NonNegativeInt = 1

    @model_validator(mode="after")
    def _apart(self) -> ComparatorCombiner:
        both = sorted(set(self.entity_1) & set(self.entity_2))
        if both:
            raise PydanticCustomError("entity", f"{', '.join(both)} is in entity_1 and in entity_2; leave it in one")
        return self

    @property
    def linear(self) -> bool:
        """Products and distances are not linear, but nothing is learnt before them without layers."""
        return not self.layers()

    def unknown(self, inputs: Sequence[str]) -> list[str]:
        """What is wrong with the entities where these are the inputs, one sentence each, with its place."""
        faults = [
            f"combiner.{key}: there is no input {name!r}{nearest(name, inputs)}"
            for key, names in (("entity_1", self.entity_1), ("entity_2", self.entity_2))
            for name in names
            if name not in inputs
        ]
        return faults + [
            f"combiner: the input {name!r} is in neither entity_1 nor entity_2; add it to one, or remove it"
            for name in inputs
            if name not in (*self.entity_1, *self.entity_2)
        ]

    def build(self, dims: Mapping[str, int]) -> Comparator:
        """The module for input vectors of these widths. Raises ConfigError when an entity names no input, or is wider."""
        faults = self.unknown(tuple(dims))
        if faults:
            raise ConfigError("\n".join(faults))
        entities = [{name: dims[name] for name in entity} for entity in (self.entity_1, self.entity_2)]
        widths = [sum(entity.values()) for entity in entities]
        if widths[0] != widths[1] and not self.layers():
            raise ConfigError(
                f"combiner: entity_1 has {widths[0]} values and entity_2 {widths[1]}, which cannot be compared one by one; "
                "set num_fc_layers to at least 1"
            )
        return Comparator(entities, self.layers())


class Comparator(nn.Module):
    """Vectors by feature name → (batch, ``self.dim``): both entities, their absolute difference and their product.

    Entities of one width share the stack; else each has its own.
    """

    def __init__(self, entities: Sequence[Mapping[str, int]], layers: tuple[FcLayer, ...]) -> None:
        super().__init__()
        self.entities = tuple(tuple(entity) for entity in entities)
        widths = [sum(entity.values()) for entity in entities]
        shared = widths[0] == widths[1]
        self.stacks = nn.ModuleList(FullyConnected(width, layers) for width in (widths[:1] if shared else widths))
        self.dim = 4 * (layers[-1].output_size if layers else widths[0])

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        first, second = (
            stack(side_by_side([vectors[name] for name in names]))
            for names, stack in zip(self.entities, (self.stacks[0], self.stacks[-1]), strict=True)
        )
        return torch.cat([first, second, (first - second).abs(), first * second], dim=1)
