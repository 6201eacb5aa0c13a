"""Candidates from best to worst, as plain values, CSV and a plot."""

from __future__ import annotations

import csv
import html
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainer.checkpoint import plain
from trainer.sweep.objective import Objective
from trainer.sweep.plan import short
from trainer.sweep.record import Result


@dataclass(frozen=True)
class Standing:
    """One candidate: the mean of the metric over its trials, their spread (the standard deviation of a sample, NaN of one)
    and extremes. ``rank`` from 1; a candidate with a failed trial has none, and is told ``errors``."""

    rank: int | None
    candidate: int
    values: Mapping[str, Any]
    mean: float
    spread: float
    lowest: float
    highest: float
    trials: tuple[int, ...]
    epochs: float
    seconds: float
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Leaderboard:
    """Every candidate, best first, and what they are ranked by."""

    field: str
    metric: str
    split: str
    goal: str
    standings: tuple[Standing, ...]

    @property
    def best(self) -> Standing | None:
        """The first, None when every candidate failed."""
        return next((standing for standing in self.standings if standing.rank is not None), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return plain(asdict(self))  # type: ignore[no-any-return]

    def to_csv(self) -> str:
        """One line per candidate, one column per path."""
        paths = list(dict.fromkeys(path for standing in self.standings for path in standing.values))
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["rank", "mean", "spread", "lowest", "highest", "trials", "epochs", "seconds", *paths, "error"])
        for standing in self.standings:
            numbers = (standing.mean, standing.spread, standing.lowest, standing.highest)
            writer.writerow(
                [
                    "" if standing.rank is None else standing.rank,
                    *("" if math.isnan(number) else f"{number:.6g}" for number in numbers),
                    " ".join(f"{number:03}" for number in standing.trials),
                    f"{standing.epochs:g}",
                    f"{standing.seconds:.3f}",
                    *(short(standing.values[path]) if path in standing.values else "" for path in paths),
                    "; ".join(standing.errors),
                ]
            )
        return out.getvalue()


def rank(results: Sequence[Result], by: Objective) -> Leaderboard:
    """The candidates by the mean of the metric of their trials."""
    by_candidate: dict[int, list[Result]] = {}
    for result in results:
        by_candidate.setdefault(result.candidate, []).append(result)
    found = [_standing(trials, by) for trials in by_candidate.values()]
    sign = -1 if by.goal == "maximize" else 1
    found.sort(key=lambda each: (math.isnan(each.mean), sign * each.mean if not math.isnan(each.mean) else 0.0))
    ranked = [each if math.isnan(each.mean) else replace(each, rank=place) for place, each in enumerate(found, 1)]
    return Leaderboard(by.field, by.metric, by.split, by.goal, tuple(ranked))


def plot(board: Leaderboard, results: Sequence[Result]) -> str:
    """An SVG of the candidates, best on top: every trial a dot, the mean a mark, what varies its label."""
    shown = [standing for standing in board.standings if standing.rank is not None][:50]
    value_of = {result.number: _value(result, board.field, board.metric, board.split) for result in results}
    given: dict[str, set[str]] = {}
    for standing in shown:
        for path, value in standing.values.items():
            given.setdefault(path, set()).add(short(value))
    varied = [path for path, values in given.items() if len(values) > 1]
    numbers = [value_of[number] for standing in shown for number in standing.trials]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    margin = (high - low or abs(high) or 1.0) * 0.06
    low, high = low - margin, high + margin
    left, width, line, top = 380, 420, 22, 56
    height = top + line * max(1, len(shown)) + 34

    def across(value: float) -> float:
        return left + width * (value - low) / (high - low)

    title = f"{board.metric} of {board.field}, {board.split}: {len(shown)} of {len(board.standings)} candidates"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        "<style>text{fill:#222}.soft{fill:#667}.axis{stroke:#ccd}.range{fill:#c3d3f2}.mean{fill:#222}.dot{fill:#1d4ed8}"
        "@media(prefers-color-scheme:dark){text{fill:#eee}.soft{fill:#99a}.axis{stroke:#445}.range{fill:#2d4a80}.mean{fill:#eee}.dot{fill:#93b4ff}}"
        "</style>",
        f'<text x="16" y="24" font-size="14" font-weight="600">{html.escape(title)}</text>',
    ]
    for step in range(5):
        value = low + (high - low) * step / 4
        x = across(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{height - 26}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{height - 10}" text-anchor="middle">{value:.4g}</text>')
    for place, standing in enumerate(shown):
        y = top + line * place + 8
        name = ", ".join(
            f"{path.rpartition('.')[2]}={short(standing.values[path])}" for path in varied if path in standing.values
        )
        label = name if len(name) <= 50 else name[:49] + "…"
        parts.append(
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end"><title>{html.escape(name)}</title>'
            f"{html.escape(label or 'as configured')}</text>"
        )
        ends, mean = (across(standing.lowest), across(standing.highest)), across(standing.mean)
        parts.append(
            f'<rect class="range" x="{ends[0]:.1f}" y="{y - 4}" width="{ends[1] - ends[0]:.1f}" height="8" rx="4"/>'
        )
        parts.append(f'<rect class="mean" x="{mean - 1.5:.1f}" y="{y - 8}" width="3" height="16"/>')
        parts += [
            f'<circle class="dot" cx="{across(value_of[number]):.1f}" cy="{y}" r="3"><title>trial {number:03}: '
            f"{value_of[number]:.6g}</title></circle>"
            for number in standing.trials
        ]
    return "\n".join([*parts, "</svg>", ""])


def _standing(trials: Sequence[Result], by: Objective) -> Standing:
    values = [_value(result, by.field, by.metric, by.split) for result in trials if result.error is None]
    errors = tuple(dict.fromkeys(result.error for result in trials if result.error is not None))
    whole = not errors and not any(math.isnan(value) for value in values)
    return Standing(
        rank=None,
        candidate=trials[0].candidate,
        values=trials[0].values,
        mean=statistics.fmean(values) if whole else math.nan,
        spread=statistics.stdev(values) if whole and len(values) > 1 else math.nan,
        lowest=min(values) if whole else math.nan,
        highest=max(values) if whole else math.nan,
        trials=tuple(result.number for result in trials),
        epochs=statistics.fmean(result.epochs for result in trials),
        seconds=sum(result.seconds for result in trials),
        errors=errors or (() if whole else (f"{by.metric} of {by.field!r} is undefined on the {by.split} rows",)),
    )


def _value(result: Result, field: str, metric: str, split: str) -> float:
    if result.error is not None:
        return math.nan
    found = result.metrics.get(split, {}).get(field, {}).get(metric)
    return math.nan if found is None else found
