"""Runs side by side: their metrics, where their configs differ, and their learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cachestore.errors import UsageError
from trainer.metrics import COMBINED, DIRECTIONS
from trainer.report import charts, html
from trainer.report.charts import spoken
from trainer.report.document import interval
from trainer.report.figures import Figure, Plot, Series
from trainer.report.files import RunFiles, read
from trainer.report.numbers import measure
from trainer.report.svg import PALETTE

_ABSENT: Final = "–"


@dataclass(frozen=True)
class Line:
    """A metric of an output by run, None where a run lacks it; ``best``: the runs that have the best value."""

    output: str
    metric: str
    values: Sequence[float | None]
    best: Sequence[int]

    def against_first(self, place: int) -> float | None:
        """How much more than the first run's the value is."""
        value, first = self.values[place], self.values[0]
        return None if value is None or first is None else value - first


@dataclass(frozen=True)
class Comparison:
    """``names`` tell the runs apart; ``config``: settings that are not the same in all, by path. ``split`` has the metrics."""

    runs: Sequence[RunFiles]
    names: Sequence[str]
    split: str
    lines: Sequence[Line]
    config: Mapping[str, Sequence[Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "split": self.split,
            "runs": [
                {
                    "name": name,
                    "run": str(run.path),
                    "epochs": run.summary["epochs"],
                    "best_epoch": run.summary["best_epoch"],
                    "rows": run.summary["rows"],
                    "seconds": sum(run.summary["seconds"].values()),
                    "curves": {
                        split: {"epochs": list(found.epochs), "metrics": found.values}
                        for split, found in run.curves.items()
                    },
                }
                for name, run in zip(self.names, self.runs, strict=True)
            ],
            "metrics": [
                {
                    "output": line.output,
                    "metric": line.metric,
                    "values": list(line.values),
                    "differences": [line.against_first(place) for place in range(len(self.runs))],
                    "best": [self.names[place] for place in line.best],
                }
                for line in self.lines
            ],
            "config": {path: list(values) for path, values in self.config.items()},
            "same_data": self.same_data,
        }

    @property
    def same_data(self) -> bool | None:
        """Whether all were measured on the same rows; None where some run does not tell."""
        held = [(run.facts, run.kept) for run in self.runs]
        found = [
            (facts.sources[facts.held_by].digest, kept.of, kept.rows.tobytes())
            for facts, kept in held
            if facts is not None and kept is not None and facts.held_by is not None and facts.split == self.split
        ]
        if len(found) < len(self.runs) or any(digest is None for digest, _, _ in found):
            return None
        return len(set(found)) == 1


def compare(paths: Sequence[Path], split: str | None = None) -> Comparison:
    """Runs in the order given, by the metrics of ``split``: by default test, where all have it, else validation, else train.

    Raises UsageError for fewer than two runs, for a directory that is none, and when no split is in all of them.
    """
    if len(paths) < 2:
        raise UsageError("A comparison takes at least two runs. Name another one.")
    runs = [read(path) for path in paths]
    there = [name for name in ("test", "validation", "train") if all(name in run.summary["metrics"] for run in runs)]
    if split is not None and split not in there:
        raise UsageError(f"Not every run has metrics of {split!r}. All of them have: {', '.join(there)}.")
    chosen = split or there[0]
    metrics = [run.metrics[chosen] for run in runs]
    names = dict.fromkeys((output, metric) for found in metrics for output in found for metric in found[output])
    lines = []
    for output, metric in names:
        values = [found.get(output, {}).get(metric) for found in metrics]
        lines.append(Line(output, metric, values, _best(metric, values)))
    flat = [_flat(run.config) for run in runs]
    settings = dict.fromkeys(path for found in flat for path in found)
    differing = {
        path: [found.get(path) for found in flat]
        for path in settings
        if any(path not in found or found[path] != flat[0].get(path) for found in flat)
    }
    return Comparison(runs, _names(paths), chosen, lines, differing)


def document(found: Comparison) -> str:
    """The comparison as a page."""
    title = " · ".join(found.names)
    tables: dict[str, list[list[object]]] = {}
    for line in found.lines:
        cells: list[object] = [spoken(line.metric)]
        for place, value in enumerate(line.values):
            mark = " ●" if place in line.best and len(line.best) < len(line.values) else ""
            difference = line.against_first(place)
            told = f"{difference:+.4f}" if place and difference is not None else ""
            cells.append(
                (measure(value) + mark, told, interval(found.runs[place], found.split, line.output, line.metric))
            )
        tables.setdefault(line.output, []).append(cells)
    shown = [
        f"<h3>{html.text('all outputs' if output == COMBINED else output)}</h3>{html.table(('metric', *found.names), rows)}"
        for output, rows in tables.items()
    ]
    notes = {True: "All were measured on the same rows.", False: "They were not measured on the same rows."}
    note = f"Metrics of the {found.split} rows; ● is the best, signed figures are differences from the first run. " + (
        notes[found.same_data] if found.same_data is not None else ""
    )
    settings = [
        (path, *(_ABSENT if value is None else str(value) for value in values)) for path, values in found.config.items()
    ]
    sections = [
        html.section("metrics", "Metrics", [f'<p class="note">{note}</p>', *shown]),
        html.section("curves", "Learning curves", [html.figures(curves(found))]),
        html.section(
            "config",
            "Settings that differ",
            [html.table(("setting", *found.names), settings, numeric=9999) if settings else "<p>There are none.</p>"],
        ),
    ]
    head = f'<header><h1>{html.text(title)}</h1><p class="sub">{len(found.runs)} runs</p></header>'
    return html.page(title, [head, f"<main>{''.join(sections)}</main>"])


def curves(found: Comparison) -> list[Figure]:
    """Loss and chief metric of every output by epoch, a line for each run: of validation, or of training where a run has none."""
    split = "validation" if all("validation" in run.curves for run in found.runs) else "train"
    figures: list[Figure] = []
    kinds = {output["name"]: output["type"] for run in found.runs for output in run.config["output_features"]}
    held = [run.curves[split].values if split in run.curves else {} for run in found.runs]
    for output in dict.fromkeys(name for values in held for name in values):
        metrics = dict.fromkeys(metric for values in held for metric in values.get(output, {}))
        for metric in dict.fromkeys(["loss", *charts.headline(kinds.get(output, ""), metrics)[:1]]):
            series = [
                Series(name, run.curves[split].epochs, values[output][metric], place % PALETTE)
                for place, (name, run, values) in enumerate(zip(found.names, found.runs, held, strict=True))
                if metric in values.get(output, {})
            ]
            label = "all outputs" if output == COMBINED else output
            title = f"{spoken(metric)[0].upper()}{spoken(metric)[1:]}: {label}, {split}"
            figures.append(Plot(title, "epoch", spoken(metric), series, whole_x=True))
    return figures


def _best(metric: str, values: Sequence[float | None]) -> list[int]:
    there = [value for value in values if value is not None]
    if metric not in DIRECTIONS or not there:
        return []
    best = max(there) if DIRECTIONS[metric] == "max" else min(there)
    return [place for place, value in enumerate(values) if value == best]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    resolved = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, resolved)) + 1):
        names = ["/".join(parts[-length:]) for parts in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Leaves by dotted path; features by their name."""
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) and "name" in one for one in value):
        items = {one["name"]: one for one in value}.items()
    else:
        return {path: value}
    found: dict[str, Any] = {}
    for key, held in items:
        found |= _flat(held, f"{path}.{key}" if path else str(key))
    return found
