"""Combiners: input vectors → one vector. A new one is a file here and a member of the union.

The settings of each have ``build(dims)``, ``layers()`` of the stack at its end, and ``linear``: whether nothing is learnt
before the decoder, so that a decoder without layers is a convex problem.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from trainer.combiners.comparator import ComparatorCombiner
from trainer.combiners.concat import ConcatCombiner
from trainer.combiners.gated_fusion import GatedFusionCombiner
from trainer.combiners.project_aggregate import ProjectAggregateCombiner
from trainer.combiners.transformer import FtTransformerCombiner, TransformerCombiner

Combiner: TypeAlias = Annotated[
    ConcatCombiner
    | ProjectAggregateCombiner
    | GatedFusionCombiner
    | TransformerCombiner
    | FtTransformerCombiner
    | ComparatorCombiner,
    Field(discriminator="type"),
]

__all__ = [
    "Combiner",
    "ComparatorCombiner",
    "ConcatCombiner",
    "FtTransformerCombiner",
    "GatedFusionCombiner",
    "ProjectAggregateCombiner",
    "TransformerCombiner",
]
