"""What settings of an encoder are settled to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cachestore.keys import Json


@dataclass(frozen=True)
class Resolved:
    """Settings with every default settled: the spec, the length of a vector, and where the files of a model lie."""

    spec: Mapping[str, Json]
    dim: int
    directory: Path = Path()
