"""The page of a run, from its files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cachestore import yaml_source
from trainer.metrics import COMBINED
from trainer.report import charts, html
from trainer.report.charts import spoken
from trainer.report.files import RunFiles
from trainer.report.mistakes import Contents
from trainer.report.numbers import measure, seconds, short
from trainer.report.output_section import output_section


def document(run: RunFiles, mistakes: Mapping[str, np.ndarray[Any, Any]], contents: Contents) -> str:
    """The report as HTML. ``mistakes``: by output, places among the kept predictions; ``contents``: what their rows hold."""
    outputs = run.config["output_features"]
    sections = [("results", "Results", [_metrics(run)])]
    if curves := charts.training(run):
        sections.append(("training", "Training", [html.figures(curves), _training_facts(run)]))
    for place, output in enumerate(outputs):
        parts = output_section(run, output, mistakes.get(output["name"]), contents)
        if parts:
            sections.append((f"output-{place}", f"Output: {output['name']}", parts))
    sections.append(("data", "Data", _data(run)))
    sections.append(("lineage", "Lineage", [html.pairs(_lineage(run))]))
    config = html.text(yaml_source.dump(dict(run.config)))
    shown = f"<details><summary>config.yaml, every default written out</summary><pre>{config}</pre></details>"
    sections.append(("config", "Config", [f'<div class="card">{shown}</div>']))
    links = "".join(f'<a href="#{anchor}">{html.text(title)}</a>' for anchor, title, _ in sections)
    names = ", ".join(output["name"] for output in outputs)
    created = run.facts.created[:16].replace("T", " ") + " UTC" if run.facts else ""
    head = (
        f'<header><h1>{html.text(run.name)}</h1><p class="sub">{html.text(" · ".join(filter(None, [f"predicts {names}", created])))}</p>'
        f'<div class="tiles">{"".join(_tiles(run))}</div><nav>{links}</nav></header>'
    )
    body = "".join(html.section(*one) for one in sections)
    version = run.facts.versions.get("cachestore", "") if run.facts else ""
    return html.page(
        f"{run.name}: {names}", [head, f"<main>{body}</main>", f"<footer>cachestore {html.text(version)}</footer>"]
    )


def _tiles(run: RunFiles) -> list[str]:
    summary, split = run.summary, run.shown_split
    metrics = run.metrics[split]
    tiles = []
    outputs = run.config["output_features"]
    for output in outputs:
        name = output["name"]
        steering = summary["validation_metric"] if summary["validation_field"] == name else None
        for metric in charts.headline(output["type"], metrics[name], steering)[: 4 if len(outputs) == 1 else 2]:
            label = f"{split} {spoken(metric)}" if len(outputs) == 1 else f"{name}: {split} {spoken(metric)}"
            tiles.append(html.tile(label, measure(metrics[name][metric]), interval(run, split, name, metric)))
    epochs = summary["epochs"]
    kept = f"kept: {summary['best_epoch']}" if summary["best_epoch"] != epochs else ""
    tiles.append(html.tile("epochs", f"{epochs:,}", kept))
    tiles.append(html.tile("time", seconds(sum(summary["seconds"].values()))))
    return tiles


def interval(run: RunFiles, split: str, output: str, metric: str) -> str:
    """The 95 % interval of a metric, as ``0.912 to 0.934``; empty where there is none."""
    found = run.estimate(split, output, metric)
    low, high = found.get("low"), found.get("high")
    return "" if low is None or high is None else f"{measure(low)} to {measure(high)}"


def _metrics(run: RunFiles) -> str:
    metrics = run.metrics
    splits = list(metrics)
    kinds = {output["name"]: output["type"] for output in run.config["output_features"]}
    outputs = list(dict.fromkeys(output for found in metrics.values() for output in found))
    parts = []
    for output in outputs:
        names = dict.fromkeys(name for split in splits for name in metrics[split].get(output, {}))
        chief = [name for name in ("loss", *charts.headline(kinds.get(output, ""), names)) if name in names]
        rows = {
            name: (
                spoken(name),
                *(
                    (measure(metrics[split][output][name]), interval(run, split, output, name))
                    if name in metrics[split].get(output, {})
                    else ""
                    for split in splits
                ),
            )
            for name in (*dict.fromkeys(chief), *(name for name in names if name not in chief))
        }
        if len(outputs) > 1:
            parts.append(f"<h3>{html.text('all outputs' if output == COMBINED else output)}</h3>")
        head = ("metric", *splits)
        parts.append(html.table(head, [row for name, row in rows.items() if name in chief]))
        if rest := [row for name, row in rows.items() if name not in chief]:
            parts.append(f"<details><summary>{len(rest)} more metrics</summary>{html.table(head, rest)}</details>")
    notes = ["The smaller figures are 95 % intervals, of resampled rows."] if run.evaluation else []
    notes += [
        f"Percentage errors of {output} leave out {zeros:,} {split} rows whose value is 0."
        for split in splits
        for output in outputs
        if (zeros := run.zero_targets(split, output))
    ]
    return "".join(parts) + (f'<p class="note">{html.text(" ".join(notes))}</p>' if notes else "")


def _training_facts(run: RunFiles) -> str:
    summary, config = run.summary, run.config
    trainer = config["trainer"]
    optimizer = trainer.get("optimizer", {})
    settings = ", ".join(f"{name} {_plain(value)}" for name, value in optimizer.items() if name != "type")
    rows: list[tuple[str, object]] = [
        ("kept", f"epoch {summary['best_epoch']} of {summary['epochs']}" + _why_kept(run)),
        ("optimizer", f"{optimizer.get('type', '')}{f' ({settings})' if settings else ''}"),
        ("learning rate", f"{summary['learning_rate']:g}"),
        ("batch size", f"{summary['batch_size']:,}"),
        ("combiner", config["combiner"]["type"]),
        ("seed", config.get("random_seed", "")),
    ]
    if run.facts:
        rows += [("parameters", f"{run.facts.parameters:,}"), ("device", run.facts.device)]
    rows.append(("time", ", ".join(f"{phase} {seconds(spent)}" for phase, spent in summary["seconds"].items())))
    return f"<h3>How it was trained</h3>{html.pairs(rows)}"


def _why_kept(run: RunFiles) -> str:
    summary = run.summary
    if not summary["rows"].get("validation"):
        return ", the last: there are no validation rows"
    return f", by {spoken(summary['validation_metric'])} of {summary['validation_field']} on the validation rows"


def _data(run: RunFiles) -> list[str]:
    summary, facts = run.summary, run.facts
    rows: list[tuple[str, object]] = [
        ("rows", ", ".join(f"{count:,} {split}" for split, count in summary["rows"].items())),
        ("not used", ", ".join(f"{count:,}: {reason}" for reason, count in summary["dropped"].items()) or "none"),
        ("left out", f"{summary['left_out']:,}: their part has a file of its own" if summary["left_out"] else ""),
        ("cells skipped", f"{summary['skipped']:,}" if summary["skipped"] else ""),
    ]
    if facts:
        rows += [(f"{name} file", source.path or source.label) for name, source in facts.sources.items()]
    parts = [html.pairs(rows)]
    features = [
        (feature["name"], feature["type"], feature["column"], _encoder(feature), _learnt(run.states[feature["name"]]))
        for feature in (*run.config["input_features"], *run.config["output_features"])
        if feature["name"] in run.states
    ]
    parts.append(f"<h3>Features</h3>{html.table(('name', 'type', 'column', 'encoder', 'learnt'), features, numeric=9)}")
    if facts:
        drawn = [
            charts.targets(
                output["name"], output["type"], run.states[output["name"]], facts.targets.get(output["name"], {})
            )
            for output in run.config["output_features"]
        ]
        parts.append("<h3>Targets</h3>" + html.figures([figure for figure in drawn if figure is not None]))
    return parts


def _encoder(feature: Mapping[str, Any]) -> str:
    encoder = feature.get("encoder") or {}
    name = encoder.get("pretrained_model_name_or_path") or encoder.get("model_name") or ""
    return f"{encoder.get('type', '')} {name}".strip() or "–"


def _learnt(state: Mapping[str, Any]) -> str:
    match state["type"]:
        case "text" | "image":
            return f"vectors of {state['dim']:,} numbers" + (
                ", with an indicator of missing cells" if state["missing"] else ""
            )
        case "category" | "set":
            return f"{len(state['vocabulary']):,} values"
        case "binary":
            return " / ".join(map(str, state["labels"]))
        case "number":
            if state["normalization"] is None:
                return "as it is"
            return f"{state['normalization']}, shift {short(state['shift'])}, scale {short(state['scale'])}"
    return ""


def _lineage(run: RunFiles) -> list[tuple[str, object]]:
    summary, facts = run.summary, run.facts
    rows: list[tuple[str, object]] = []
    for split, identities in summary["manifests"].items():
        names = ", ".join(summary["references"].get(split, []))
        rows.append((f"{split} manifest", f"{names} ({', '.join(identities)})" if names else ", ".join(identities)))
    rows += [
        (f"{name} encoder", f"fingerprint {state['fingerprint']}")
        for name, state in run.states.items()
        if "fingerprint" in state
    ]
    if facts:
        rows += [
            (
                f"{name} file",
                f"{source.path or source.label}" + (f", xxh3_128 {source.digest}" if source.digest else ""),
            )
            for name, source in facts.sources.items()
        ]
        rows.append(("store", facts.store))
        rows.append(("made with", ", ".join(f"{name} {version}" for name, version in facts.versions.items())))
    rows.append(
        ("vectors", f"{summary['encoded']:,} encoded by this run, {summary['hits']:,} cells found in the store")
    )
    return rows


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
