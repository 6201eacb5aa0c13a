"""Combiners: input vectors → one vector. A new one is a file here and a member of the union."""

from __future__ import annotations

from typing import TypeAlias

from trainer.combiners.concat import ConcatCombiner

Combiner: TypeAlias = ConcatCombiner

__all__ = ["Combiner", "ConcatCombiner"]
