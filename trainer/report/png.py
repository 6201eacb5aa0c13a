"""Figures as PNG, by matplotlib: the extra ``plots``."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cachestore import outside
from cachestore.errors import UsageError
from trainer.report.figures import Bars, Figure, Histogram, Matrix, Plot
from trainer.report.svg import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER: Final = "plots"
_COLORS: Final = ("#2166ac", "#c4541a", "#23805a", "#84479e", "#b2263b", "#6f6600")
_NUMBERED: Final = 24  # classes up to which a matrix has its counts


def require() -> None:
    """Raises UsageError when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("Plots as PNG need matplotlib. Install it: pip install 'cachestore[plots]'.")


def write(folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write every figure as ``folder``/NAME.png; returns where they are. Raises UsageError as ``require`` does."""
    require()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise outside.unwritable(folder, error) from error
    paths: list[Path] = []
    for name, figure in figures.items():
        stem = re.sub(r"[^\w.-]+", "_", name).strip("._")[:80] or "plot"
        taken = {path.stem for path in paths}
        while stem in taken:
            stem += "_"
        path = folder / f"{stem}.png"
        outside.write(path, _png(figure))
        paths.append(path)
    return paths


def _png(figure: Figure) -> bytes:
    from matplotlib.figure import Figure as Canvas

    size = (6.4, 4.2)
    if isinstance(figure, Matrix):
        side = min(max(4.5, len(figure.labels) * 0.26), 24)
        size = (side + 1.5, side + 1.2)
    elif isinstance(figure, Bars):
        size = (6.4, max(2.0, 0.9 + 0.24 * len(figure.labels) * max(len(figure.values), 1)))
    canvas = Canvas(figsize=size, dpi=150, layout="constrained")
    axes: Axes = canvas.add_subplot()
    axes.set_title(_plain(figure.title), fontsize=11)
    match figure:
        case Plot():
            _plot(axes, figure)
        case Histogram():
            _histogram(axes, figure)
        case Bars():
            _bars(axes, figure)
        case Matrix():
            _matrix(axes, figure)
    out = io.BytesIO()
    canvas.savefig(out, format="png")
    return out.getvalue()


def _plot(axes: Axes, figure: Plot) -> None:
    from matplotlib.ticker import MaxNLocator

    for series in figure.series:
        color = _COLORS[series.color % len(_COLORS)]
        label = _plain(series.name) or None
        match series.stroke:
            case "points":
                axes.plot(series.x, series.y, ".", color=color, alpha=0.45, markersize=4, label=label)
            case "faint":
                axes.plot(series.x, series.y, "--", color="#888888", linewidth=1)
            case _:
                mark = "o" if len(series.x) <= 30 else ""
                style = "--" if series.stroke == "dashed" else "-"
                axes.plot(series.x, series.y, style, marker=mark, markersize=3.5, color=color, label=label)
    if figure.mark is not None:
        axes.axvline(figure.mark[0], color="#888888", linestyle=":", linewidth=1)
    _name_axes(axes, figure)
    if figure.x_range is not None:
        axes.set_xlim(*figure.x_range)
    if figure.y_range is not None:
        axes.set_ylim(*figure.y_range)
    if figure.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if any(series.name for series in figure.series):
        axes.legend(fontsize=8)


def _histogram(axes: Axes, figure: Histogram) -> None:
    edges = np.asarray(figure.edges)
    width = np.diff(edges) / len(figure.counts)
    for place, (name, counts) in enumerate(figure.counts.items()):
        label = _plain(name) or None
        axes.bar(
            edges[:-1] + width * place, counts, width, align="edge", color=_COLORS[place % len(_COLORS)], label=label
        )
    _name_axes(axes, figure)
    if len(figure.counts) > 1:
        axes.legend(fontsize=8)


def _bars(axes: Axes, figure: Bars) -> None:
    places = np.arange(len(figure.labels))
    height = 0.8 / len(figure.values)
    for place, (name, values) in enumerate(figure.values.items()):
        axes.barh(places + height * place, values, height, color=_COLORS[place % len(_COLORS)], label=_plain(name))
    axes.set_yticks(places + 0.4 - height / 2, [_plain(cut(label)) for label in figure.labels], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(_plain(figure.x_label))
    if len(figure.values) > 1:
        axes.legend(fontsize=8)


def _matrix(axes: Axes, figure: Matrix) -> None:
    counts = np.asarray(figure.counts, np.float64)
    totals = np.asarray(figure.totals or counts.sum(axis=1), np.float64)
    shares = counts / np.maximum(totals, 1)[:, None]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [_plain(cut(label)) for label in figure.labels]
    places = range(len(names))
    size = 8 if len(names) <= _NUMBERED else 6
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    axes.set_yticks(places, names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) <= _NUMBERED:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.55 else "black"
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=color, fontsize=7)


def _name_axes(axes: Axes, figure: Plot | Histogram) -> None:
    axes.set_xlabel(_plain(figure.x_label))
    axes.set_ylabel(_plain(figure.y_label))
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)


def _plain(text: Any) -> str:
    return str(text).replace("$", r"\$")  # matplotlib sets what stands between dollars as mathematics
