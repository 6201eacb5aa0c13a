"""Figures as inline SVG. Colours are those of the page's style, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from trainer.report.figures import Bars, Figure, Histogram, Matrix, Plot, Range, Series
from trainer.report.numbers import short, tick_labels, ticks

PALETTE: Final = 6
_WIDTH, _HEIGHT = 420, 280
_CHAR = 7.0  # the width of a character, on average: of 11 px, and on a phone of 12.5
_LABEL: Final = 24  # characters of a class that are shown


def draw(figure: Figure) -> str:
    """The figure as one ``svg`` element."""
    match figure:
        case Plot():
            return _plot(figure)
        case Histogram():
            return _histogram(figure)
        case Bars():
            return _bars(figure)
        case Matrix():
            return _matrix(figure)


def cut(text: str, length: int = _LABEL) -> str:
    """``text`` with its end left out where it is long."""
    return text if len(text) <= length else text[: length - 1] + "…"


class _Axes:
    """Where values lie on the canvas, and the frame around them."""

    def __init__(
        self,
        x: Range,
        y: Range,
        x_label: str,
        y_label: str,
        legend: Sequence[tuple[str, str]],
        whole_x: bool = False,
        whole_y: bool = False,
    ) -> None:
        self._x, self._y = _spread(x), _spread(y)
        self._x_ticks = ticks(*self._x, 7, whole_x)
        self._y_ticks = ticks(*self._y, 6, whole_y)
        self._y_labels = tick_labels(self._y_ticks)
        self._labels = (x_label, y_label)
        rows = _legend(legend)
        self._top = 12 + 18 * len(rows)
        self._left = 26 + max(map(len, self._y_labels)) * _CHAR
        self._right, self._bottom = _WIDTH - 14, _HEIGHT - 42
        self._legend = rows

    def x(self, value: float) -> float:
        low, high = self._x
        return self._left + (value - low) / (high - low) * (self._right - self._left)

    def y(self, value: float) -> float:
        low, high = self._y
        return self._bottom - (value - low) / (high - low) * (self._bottom - self._top)

    def frame(self) -> list[str]:
        """Grid, tick labels, axis labels and legend."""
        parts = []
        for value, label in zip(self._y_ticks, self._y_labels, strict=True):
            at = self.y(value)
            parts.append(f'<path class="grid" d="M{self._left:.1f} {at:.1f}H{self._right}"/>')
            parts.append(f'<text x="{self._left - 6:.1f}" y="{at + 3.5:.1f}" text-anchor="end">{label}</text>')
        for value, label in zip(self._x_ticks, tick_labels(self._x_ticks), strict=True):
            at = self.x(value)
            parts.append(f'<path class="tick" d="M{at:.1f} {self._bottom}v4"/>')
            parts.append(f'<text x="{at:.1f}" y="{self._bottom + 17}" text-anchor="middle">{label}</text>')
        parts.append(f'<path class="axis" d="M{self._left:.1f} {self._bottom}H{self._right}"/>')
        middle = (self._left + self._right) / 2
        height = (self._top + self._bottom) / 2
        x_label, y_label = map(escape, self._labels)
        parts.append(f'<text class="label" x="{middle:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{x_label}</text>')
        parts.append(
            f'<text class="label" transform="translate(12 {height:.1f}) rotate(-90)" text-anchor="middle">{y_label}</text>'
        )
        return parts + _entries(self._legend)

    def mark(self, value: float) -> str:
        """A vertical line at an x."""
        return f'<path class="mark" d="M{self.x(value):.1f} {self._top}V{self._bottom}"/>'


def _plot(plot: Plot) -> str:
    every_x = [value for series in plot.series for value in series.x]
    every_y = [value for series in plot.series for value in series.y]
    named = [(series.name, f"s{series.color} line") for series in plot.series if series.name]
    if plot.mark is not None:
        named.append((plot.mark[1], "mark"))
    axes = _Axes(
        plot.x_range or _bounds(every_x, 0.0 if plot.whole_x else 0.03),
        plot.y_range or _bounds(every_y, 0.05),
        plot.x_label,
        plot.y_label,
        named,
        plot.whole_x,
    )
    parts = axes.frame()
    if plot.mark is not None:
        parts.append(axes.mark(plot.mark[0]))
    for series in plot.series:
        parts += _series(series, axes, plot)
    return _svg(plot.title, _WIDTH, _HEIGHT, parts, "chart")


def _series(series: Series, axes: _Axes, plot: Plot) -> list[str]:
    points = [(axes.x(x), axes.y(y)) for x, y in zip(series.x, series.y, strict=True)]
    if series.stroke == "points":
        circles = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
        return [f'<path class="s{series.color} dots" d="{circles}"/>']
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts = [f'<path class="s{series.color} {series.stroke}" d="{path}"/>'] if len(points) > 1 else []
    if series.stroke == "line" and len(points) <= 60:
        radius = 3 if len(points) < 15 else 2
        for (x, y), real_x, real_y in zip(points, series.x, series.y, strict=True):
            told = f"{series.name or plot.y_label}: {short(real_y)} at {plot.x_label} {short(real_x)}"
            parts.append(
                f'<circle class="f{series.color}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"><title>{escape(told)}</title></circle>'
            )
    return parts


def _histogram(figure: Histogram) -> str:
    edges = figure.edges
    highest = max((count for counts in figure.counts.values() for count in counts), default=1)
    names = [(name, f"s{color} line") for color, name in enumerate(figure.counts)]
    whole = all(count == int(count) for counts in figure.counts.values() for count in counts)
    axes = _Axes(
        (edges[0], edges[-1]),
        (0, highest or 1),
        figure.x_label,
        figure.y_label,
        names if len(names) > 1 else [],
        whole_y=whole,
    )
    parts = axes.frame()
    bottom = axes.y(0)
    for color, (name, counts) in enumerate(figure.counts.items()):
        for place, count in enumerate(counts):
            left, right, top = axes.x(edges[place]), axes.x(edges[place + 1]), axes.y(count)
            share = (right - left) / len(names)
            told = f"{name or figure.y_label}: {short(count)} from {short(edges[place])} to {short(edges[place + 1])}"
            if count:
                parts.append(
                    f'<rect class="f{color}" x="{left + share * color + 0.5:.1f}" y="{top:.1f}" '
                    f'width="{max(share - 1, 0.6):.1f}" height="{bottom - top:.1f}"><title>{escape(told)}</title></rect>'
                )
    return _svg(figure.title, _WIDTH, _HEIGHT, parts, "chart")


def _bars(figure: Bars) -> str:
    names = list(figure.values)
    legend = _legend([(name, f"s{color} line") for color, name in enumerate(names)] if len(names) > 1 else [])
    top = 8 + 18 * len(legend)
    thick = 14 if len(names) == 1 else 9
    row = thick * len(names) + 7
    left = 10 + max(len(cut(label)) for label in figure.labels) * (_CHAR + 0.5)
    highest = max((value for values in figure.values.values() for value in values), default=1) or 1
    room = _WIDTH - left - 58
    parts = _entries(legend)
    for place, label in enumerate(figure.labels):
        y = top + place * row
        parts.append(
            f'<text x="{left - 6:.1f}" y="{y + (row - 7) / 2 + 4:.1f}" text-anchor="end">{escape(cut(label))}'
            f"<title>{escape(label)}</title></text>"
        )
        for color, name in enumerate(names):
            value = figure.values[name][place]
            at = y + color * thick
            width = max(value / highest * room, 0.8)
            parts.append(f'<rect class="f{color}" x="{left:.1f}" y="{at}" width="{width:.1f}" height="{thick - 1.5}"/>')
            parts.append(
                f'<text class="small" x="{left + width + 5:.1f}" y="{at + thick / 2 + 3:.1f}">{short(value)}</text>'
            )
    return _svg(figure.title, _WIDTH, int(top + len(figure.labels) * row + 4), parts, "chart")


def _matrix(figure: Matrix) -> str:
    labels = figure.labels
    size = next(
        pixels for most, pixels in ((3, 84), (6, 52), (14, 36), (24, 26), (50, 14), (9999, 11)) if len(labels) <= most
    )
    numbers = size >= 26
    shown = [cut(label, 16 if len(labels) <= 6 else _LABEL) for label in labels]
    widest = max(map(len, shown)) * (_CHAR if numbers else 5.2)
    flat = len(labels) <= 6 and max(map(len, shown)) * _CHAR <= size  # the names of columns fit beside each other
    left, top = 30 + widest, 40 if flat else 28 + widest
    end = len(labels) * size
    middle = f"{left + end / 2:.1f}"
    parts = [
        f'<text class="label" x="{middle}" y="13" text-anchor="middle">predicted</text>',
        f'<text class="label" transform="translate(12 {top + end / 2:.1f}) rotate(-90)" text-anchor="middle">true</text>',
        f'<rect class="plane" x="{left:.1f}" y="{top:.1f}" width="{end}" height="{end}"/>',
    ]
    totals = figure.totals or [sum(row) for row in figure.counts]
    kind = "" if numbers else ' class="small"'
    for place, label in enumerate(labels):
        at = place * size + size / 2
        title = f"<title>{escape(label)}</title>"
        name = escape(shown[place])
        parts.append(f'<text{kind} x="{left - 6:.1f}" y="{top + at + 3.5:.1f}" text-anchor="end">{name}{title}</text>')
        turn = "" if flat else " rotate(-90)"
        anchor = "middle" if flat else "start"
        shift = 0 if flat else 3.5
        parts.append(
            f'<text{kind} transform="translate({left + at + shift:.1f} {top - 6:.1f}){turn}" text-anchor="{anchor}">{name}{title}</text>'
        )
        for other, count in enumerate(figure.counts[place]):
            if not count and size < 52:
                continue
            share = count / max(totals[place], 1)
            color = 0 if place == other else 1
            told = f"{label} → {labels[other]}: {count:,} of {totals[place]:,} ({share:.1%})"
            strength = 0.12 + 0.88 * share if count else 0
            parts.append(
                f'<rect class="f{color}" fill-opacity="{strength:.2f}" x="{left + other * size + 0.5:.1f}" '
                f'y="{top + place * size + 0.5:.1f}" width="{size - 1}" height="{size - 1}"><title>{escape(told)}</title></rect>'
            )
            if numbers:
                on = "on" if strength > 0.55 else "cell"
                parts.append(
                    f'<text class="{on}{" small" if size < 36 or count > 9999 else ""}" x="{left + other * size + size / 2:.1f}" '
                    f'y="{top + place * size + size / 2 + 4:.1f}" text-anchor="middle">{count}</text>'
                )
    return _svg(figure.title, int(left + end + 6), int(top + end + 6), parts)


def _entries(rows: Sequence[Sequence[tuple[float, str, str]]]) -> list[str]:
    return [
        f'<path class="{kind}" d="M{x:.1f} {10 + 18 * line}h14"/><text x="{x + 19:.1f}" y="{14 + 18 * line}">{escape(name)}</text>'
        for line, row in enumerate(rows)
        for x, name, kind in row
    ]


def _legend(names: Sequence[tuple[str, str]]) -> list[list[tuple[float, str, str]]]:
    """The rows of a legend: the place, shortened name and kind of line of each entry."""
    rows: list[list[tuple[float, str, str]]] = []
    x = float(_WIDTH)
    for name, kind in names:
        shown = cut(name, 40)
        width = 34 + len(shown) * _CHAR
        if x + width > _WIDTH:
            rows.append([])
            x = 34.0
        rows[-1].append((x, shown, kind))
        x += width
    return rows


def _bounds(values: Sequence[float], margin: float) -> Range:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return low - (high - low) * margin, high + (high - low) * margin


def _spread(given: Range) -> Range:
    low, high = given
    if high > low:
        return given
    room = abs(low) * 0.1 or 0.5
    return low - room, high + room


def _svg(title: str, width: int, height: int, parts: Sequence[str], kind: str = "") -> str:
    return (
        f'<svg class="{kind}" role="img" aria-label="{escape(title)}" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"{''.join(parts)}</svg>"
    )
