"""What a plot shows, in the units of the data: drawn as SVG by ``svg`` and as PNG by ``png``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

Range: TypeAlias = tuple[float, float]
Stroke: TypeAlias = Literal["line", "dashed", "points", "faint"]


@dataclass(frozen=True)
class Series:
    """Points (x, y) in drawing order. ``color`` is a place in the palette; a ``faint`` line is a guide without a name."""

    name: str
    x: Sequence[float] | NDArray[Any]
    y: Sequence[float] | NDArray[Any]
    color: int = 0
    stroke: Stroke = "line"


@dataclass(frozen=True)
class Plot:
    """Series over two axes; a range that is None is that of the points. ``mark``: an x that is worth a line, and its name."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_range: Range | None = None
    y_range: Range | None = None
    mark: tuple[float, str] | None = None
    whole_x: bool = False
    note: str = ""


@dataclass(frozen=True)
class Histogram:
    """Counts by bin between ``edges`` (bins + 1), side by side for every name."""

    title: str
    x_label: str
    y_label: str
    edges: Sequence[float]
    counts: Mapping[str, Sequence[float]]
    note: str = ""


@dataclass(frozen=True)
class Bars:
    """A bar for each label and name, longest first as given."""

    title: str
    x_label: str
    labels: Sequence[str]
    values: Mapping[str, Sequence[float]]
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """Counts of rows by true class (down) and predicted class (across)."""

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str = ""
    totals: Sequence[int] = field(default=())
    """rows of each true class, with those whose prediction is not shown"""


Figure: TypeAlias = Plot | Histogram | Bars | Matrix
