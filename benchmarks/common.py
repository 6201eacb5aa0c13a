"""What the benchmarks share: medians, the machine they ran on, and one JSON and one Markdown file per result."""

from __future__ import annotations

import csv
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def timed(action: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of each of ``repeats`` calls."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return seconds


def median(values: Sequence[float]) -> float:
    """The middle value, which one slow run does not move."""
    return statistics.median(values)


def sample(source: Path, target: Path, rows: int, skip: int = 0) -> None:
    """Write ``rows`` rows of a CSV file after ``skip`` others, as far as there are, in an order drawn once and for all; with the header."""
    with source.open(encoding="utf-8", newline="") as file:
        header, *found = csv.reader(file)
    random.Random(0).shuffle(found)
    with target.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([header, *found[skip : skip + rows]])


def machine() -> dict[str, Any]:
    """The hardware, and how busy it was."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "load": round(os.getloadavg()[0], 1)}


def versions(*packages: str) -> dict[str, str]:
    """Python and the packages a benchmark rests on."""
    return {"python": platform.python_version(), **{package: metadata.version(package) for package in packages}}


def write(name: str, title: str, report: Mapping[str, Any], lines: Sequence[str], results: Path = RESULTS) -> Path:
    """Write ``name``.json with the whole report and ``name``.md with ``lines``; returns the path of the first."""
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{name}.json"
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    where = ", ".join(f"{key} {value}" for key, value in {**report["machine"], **report["versions"]}.items())
    text = "\n".join([f"# {title}", "", *lines, "", f"Measured on: {where}.", ""])
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    return path
