"""`cachestore demo`: a cold experiment, new rows, and the same experiment warm, on data that comes with the package."""

from __future__ import annotations

import csv
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

import cachestore
from cachestore.errors import UsageError
from cli import options, output
from cli.build import stored_columns

TEST_ROWS, NEW_ROWS = 100, 40
CONFIG = """\
input_features:
  - {name: message, type: text, encoder: {type: minilm}}
  - {name: plan, type: category}
  - {name: wait_minutes, type: number}
output_features:
  - {name: topic, type: category}
  - {name: urgent, type: binary}
preprocessing:
  split: {type: random, probabilities: [0.85, 0.15, 0.0]}
trainer:
  epochs: 40
  learning_rate: 0.01
"""


@dataclass(frozen=True)
class Step:
    """What one step of the tour encoded, what it found in the store, and how long it took."""

    step: str
    encoded: int
    hits: int
    seconds: float


def command(
    output_dir: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where the files go; otherwise a new temporary directory."),
    ] = None,
    store: options.StorePath = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Run a small experiment, first cold and then warm.

    617 support messages are encoded with the packaged minilm model, and a head learns their topic and urgency. Unless
    --store is given, the store is a new one in the demo's own directory, so that the first run is really cold.

    \b
    Example:
        cachestore demo

    \b
    Exit codes:
        0    done
        2    wrong usage, or the extra is missing: pip install 'cachestore[demo]'
        3    the store is locked, full or of another format
        4    damage found in the store
    """
    out = output.Output(as_json, quiet)
    place = _directory(output_dir)
    _write_files(place)
    with cachestore.open_store(store or place / "store") as opened:
        summary = _tour(opened, place, out)
    out.result(summary, _text(summary))


def _tour(store: cachestore.Store, place: Path, out: output.Output) -> dict[str, Any]:
    # Imported before the clock starts: both runs need torch, and only the first would pay for loading it.
    from cachestore.build import run as build
    from cli.evaluate import summary as evaluation_summary
    from trainer import evaluate, load_config, train

    messages, test, config = place / "messages.csv", place / "test.csv", load_config(place / "config.yaml")
    columns = stored_columns(config)
    steps: list[Step] = []

    def done(step: str, encoded: int, hits: int, began: float) -> None:
        steps.append(Step(step, encoded, hits, round(time.monotonic() - began, 3)))
        out.say(
            f"   {output.count(encoded, 'text')} encoded, {hits:,} found in the store, {output.duration(steps[-1].seconds)}\n"
        )

    def built(step: str) -> None:
        began = time.monotonic()
        with out.bar() as bar:
            progress = partial(bar.build, messages.name) if bar else None
            counts = build(store, messages, columns, progress=progress).counts
        done(step, counts.encoded, counts.hits, began)

    def trained(step: str, run: Path) -> dict[str, Any]:
        began = time.monotonic()
        summary = train(config, messages, store, output=run).to_json()
        done(step, summary["encoded"], summary["hits"], began)
        return summary

    out.say(f"Files of this tour: {place}\nStore: {store.root}\n")
    out.say("1. Build: encode the text column of messages.csv with minilm, each distinct text once.")
    built("cold build")
    out.say("2. Train: a head for two outputs, on the stored vectors and two more columns.")
    trained("cold train", place / "runs" / "cold")
    out.say(f"3. Evaluate that run on {TEST_ROWS} rows it has not seen. Their texts are new, so they are encoded.")
    began = time.monotonic()
    evaluated = evaluation_summary(evaluate(place / "runs" / "cold", test, store))
    done("evaluate", evaluated["encoded"], evaluated["hits"], began)
    out.say(f"4. {NEW_ROWS} rows are added to messages.csv. Build again: only what is new is encoded.")
    _append_new_rows(messages)
    built("incremental build")
    out.say("5. Train again, now on all rows: every vector is in the store, no model is loaded.")
    warm = trained("warm train", place / "runs" / "warm")
    return {
        "directory": str(place),
        "store": str(store.root),
        "steps": [vars(step) for step in steps],
        "cold_seconds": round(steps[0].seconds + steps[1].seconds, 3),
        "warm_seconds": steps[-1].seconds,
        "metrics": evaluated["metrics"],
        "warm_metrics": warm["metrics"],
    }


def _text(summary: dict[str, Any]) -> str:
    steps = summary["steps"]
    rows = [(s["step"], f"{s['encoded']:,}", f"{s['hits']:,}", output.duration(s["seconds"])) for s in steps]
    head = ("step", "encoded", "from the store", "time")
    return "\n".join(
        (
            output.table(head, rows, right=head[1:]),
            "",
            f"Cold run (build and train): {output.duration(summary['cold_seconds'])}.  "
            f"Warm run (train): {output.duration(summary['warm_seconds'])}.",
            "",
            f"On the {TEST_ROWS} test rows, with ten topics:",
            output.metrics({"value": summary["metrics"]}),
            "",
            "To go on, try:",
            f"    cachestore ls --store {summary['store']}",
            f"    cachestore evaluate {summary['directory']}/runs/warm {summary['directory']}/test.csv"
            f" --store {summary['store']}",
            f"The files of this tour are in {summary['directory']}; delete it when you are done.",
        )
    )


def _directory(wanted: Path | None) -> Path:
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="cachestore-demo-"))
    if wanted.exists() and not (wanted.is_dir() and not any(wanted.iterdir())):
        raise UsageError(f"{wanted} is there already; name a new or empty directory for the demo.")
    try:
        wanted.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{wanted} cannot be made ({error.strerror}); name another directory for the demo.") from error
    return wanted.absolute()


def _write_files(place: Path) -> None:
    head, *rows = _records()
    parts = {"messages": rows[: -TEST_ROWS - NEW_ROWS], "test": rows[-TEST_ROWS - NEW_ROWS : -NEW_ROWS]}
    for name, part in parts.items():
        (place / f"{name}.csv").write_text("".join([head, *part]), encoding="utf-8", newline="")
    (place / "config.yaml").write_text(CONFIG, encoding="utf-8")


def _append_new_rows(messages: Path) -> None:
    with messages.open("a", encoding="utf-8", newline="") as file:
        file.writelines(list(_records())[-NEW_ROWS:])


def _records() -> Iterator[str]:
    """The records of the demo's CSV as they stand in it, quotes and newlines included; the head first."""
    text = resources.files("cli").joinpath("demo_data/support_messages.csv").read_text(encoding="utf-8")
    lines = list(io.StringIO(text, newline=""))
    reader = csv.reader(lines)
    start = 0
    for _ in reader:
        yield "".join(lines[start : reader.line_num])
        start = reader.line_num
