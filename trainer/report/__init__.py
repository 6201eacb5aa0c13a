"""Runs that people can look at: a page, plots as PNG, TensorBoard's event files, and runs side by side."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from cachestore import outside
from trainer.report import charts, files, png, tensorboard
from trainer.report.collect import collect, predicted
from trainer.report.document import document
from trainer.report.figures import Figure
from trainer.report.mistakes import LARGEST, Contents, contents, worst
from trainer.report.png import require as require_plots
from trainer.report.tensorboard import EventFiles

PAGE = "report.html"

__all__ = [
    "LARGEST",
    "PAGE",
    "EventFiles",
    "collect",
    "figures",
    "predicted",
    "require_plots",
    "write",
    "write_plots",
    "write_tensorboard",
]


def write(path: Path, data: Any = None, *, largest: int | None = None) -> Path:
    """Write ``report.html`` into the run at ``path``; returns where it is.

    ``data`` has the rows whose predictions were kept, where their file is not where it was. A file of more than ``largest``
    bytes is not read, and the page says so. Raises UsageError when there is no finished run.
    """
    run = files.read(path)
    mistakes: dict[str, Any] = {}
    held = Contents()
    if run.facts is not None and run.kept is not None:
        for output in run.config["output_features"]:
            if output["name"] in run.kept.outputs:
                mistakes[output["name"]] = worst(output["type"], run.kept.outputs[output["name"]])
        places = np.concatenate(list(mistakes.values())) if mistakes else np.zeros(0, np.int64)
        if len(places):
            held = contents(run.config, run.facts, run.kept.rows[places], data, largest)
    outside.write(path / PAGE, document(run, mistakes, held).encode())
    return path / PAGE


def figures(path: Path) -> dict[str, Figure]:
    """Every figure of a run's report, by a name that can be a file's."""
    run = files.read(path)
    found = {f"training_{figure.title}": figure for figure in charts.training(run)}
    for output in run.config["output_features"]:
        name = output["name"]
        if run.kept is not None and name in run.kept.outputs:
            for figure in charts.outcomes(
                output["type"], run.states[name], run.kept.outputs[name], run.evaluated(name)
            ):
                found[f"{name}_{figure.title}"] = figure
    return found


def write_plots(path: Path) -> list[Path]:
    """Write every figure of a run's report as PNG into its folder ``plots``, in the place of what was there; returns the files.

    Raises UsageError when matplotlib is not installed, or there is no finished run.
    """
    png.require()
    drawn = figures(path)
    shutil.rmtree(path / png.FOLDER, ignore_errors=True)
    return png.write(path / png.FOLDER, drawn)


def write_tensorboard(path: Path) -> Path:
    """Write the metrics of a run into its folder ``tensorboard``, in the place of what was there; returns the folder."""
    files.read(path)  # a finished run, or an error
    lines = files.lines(path)
    folder = path / tensorboard.FOLDER
    shutil.rmtree(folder, ignore_errors=True)  # TensorBoard would add two files of one run up
    events = EventFiles(folder)
    for line in lines:
        events.add(line)
    return folder
