"""The part of a run's page about one output: what it predicts, which classes it knows, and where it is most wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from trainer.report import charts, html
from trainer.report.charts import spoken
from trainer.report.files import RunFiles
from trainer.report.kept import Outcome
from trainer.report.mistakes import Contents
from trainer.report.numbers import measure, short

_PAIRS: Final = 12
_FEW_CLASSES: Final = 12
_NUMBERS: Final = 6  # of a vector


def output_section(
    run: RunFiles, output: Mapping[str, Any], places: np.ndarray[Any, Any] | None, contents: Contents
) -> list[str]:
    """Figures, classes and worst mistakes of an output, as pieces of HTML.

    ``places``: of the mistakes among the kept predictions, worst first; ``contents``: what their rows hold.
    """
    name, kind = output["name"], output["type"]
    facts, kept = run.facts, run.kept
    if facts is None or kept is None or name not in kept.outputs:
        return ['<p class="note">The run kept no predictions: no row was held out, or an older version trained it.</p>']
    state, outcome = run.states[name], kept.outputs[name]
    of = f"A {kind} output, on the {kept.of:,} {facts.split} rows"
    sampled = f"; {len(kept.rows):,} of them, at even distances, are kept" if len(kept.rows) < kept.of else ""
    found = run.evaluated(name)
    parts = [
        f'<p class="note">{of}{sampled}.</p>',
        html.figures(charts.outcomes(kind, state, outcome, found)),
        _classes(found),
    ]
    labels = state.get("labels") or state.get("vocabulary")
    if places is not None:
        parts.append(_mistakes(kind, labels, outcome, kept.rows, places, contents))
    return parts


def _classes(found: Mapping[str, Any]) -> str:
    """The classes of an output, those with the lowest F1 first, and which are taken for which."""
    classes = sorted(found.get("classes") or (), key=lambda one: (one["rows"] == 0, one["f1"] or 0.0))
    confusion = found.get("confusion")
    parts = []
    if classes:
        extra = [name for name in ("roc_auc", "average_precision") if any(name in one for one in classes)]
        head = ("class", "rows", "precision", "recall", "F1", *map(spoken, extra))
        rows = [
            (
                one["class"],
                f"{one['rows']:,}",
                *(measure(one.get(name)) for name in ("precision", "recall", "f1", *extra)),
            )
            for one in classes
        ]
        parts.append(f"<h3>By class</h3>{html.table(head, rows, tall=len(rows) > _FEW_CLASSES)}")
    if confusion and len(confusion["labels"]) > 2 and confusion["pairs"]:
        rows_of = {one["class"]: one["rows"] for one in classes}
        lines = [
            (pair["actual"], pair["predicted"], f"{pair['rows']:,}", f"{pair['rows'] / rows_of[pair['actual']]:.0%}")
            for pair in confusion["pairs"][:_PAIRS]
        ]
        head = ("true", "predicted", "rows", "of the class")
        parts.append(f"<h3>Most often confused</h3>{html.table(head, lines, numeric=2)}")
    return "".join(parts)


def _mistakes(
    kind: str,
    labels: Sequence[str] | None,
    outcome: Outcome,
    rows: np.ndarray[Any, Any],
    places: np.ndarray[Any, Any],
    contents: Contents,
) -> str:
    if not len(places):
        return "<h3>Worst mistakes</h3><p>There are none.</p>" if kind in ("category", "binary") else ""
    cards = []
    for place in places.tolist():
        row = int(rows[place])
        said, truth, sure = _verdict(kind, labels or (), outcome, place)
        verdict = (
            f'<div class="verdict"><span><i>predicted</i> <span class="said">{html.text(said)}</span>{html.text(sure)}</span>'
            f'<span><i>true</i> <span class="truth">{html.text(truth)}</span></span><span><i>row {row:,}</i></span></div>'
        )
        cards.append(f'<div class="row">{verdict}{_cells(contents.rows.get(row, ()))}</div>')
    order = "the surest first" if kind in ("category", "binary") else "the largest error first"
    note = f"Wrong predictions, {order}; rows are counted from 0 in the data file." + (
        f" {contents.absent}" if contents.absent else ""
    )
    return f'<h3>Worst mistakes</h3><p class="note">{html.text(note)}</p><div class="rows">{"".join(cards)}</div>'


def _verdict(kind: str, labels: Sequence[str], outcome: Outcome, place: int) -> tuple[str, str, str]:
    """What was predicted of a row, what is true, and how sure or how far off the prediction was."""
    target, predicted = outcome.target[place], outcome.predicted[place]
    match kind:
        case "category" | "binary":
            sure = "" if outcome.probability is None else f" {_percent(float(outcome.probability[place]))}"
            return labels[int(predicted)], labels[int(target)], sure
        case "set":
            said, truth = (
                ", ".join(label for label, there in zip(labels, held.tolist(), strict=True) if there) or "nothing"
                for held in (predicted, target)
            )
            return said, truth, ""
        case "vector":
            said, truth = (
                " ".join(short(value) for value in held[:_NUMBERS].tolist()) + (" …" if len(held) > _NUMBERS else "")
                for held in (predicted, target)
            )
            return said, truth, ""
    return short(float(predicted)), short(float(target)), f" ({float(predicted) - float(target):+,.4g})"


def _cells(cells: Sequence[Any]) -> str:
    parts = []
    several = sum(cell.long for cell in cells) > 1
    for cell in cells:
        if cell.picture:
            parts.append(f'<img alt="{html.text(cell.column)}" src="{html.text(cell.picture)}">')
        elif cell.long:
            name = f"<i>{html.text(cell.column)}: </i>" if several else ""
            parts.append(f'<p class="text">{name}{html.text(cell.text)}</p>')
    others = " · ".join(f"{cell.column}: {cell.text}" for cell in cells if not cell.picture and not cell.long)
    return "".join(parts) + (f'<div class="others">{html.text(others)}</div>' if others else "")


def _percent(probability: float) -> str:
    return f"{probability:.1%}" if probability < 0.9995 else f"{min(probability, 0.99999):.3%}"
