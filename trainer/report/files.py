"""The files of a finished run, read for a report or a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachestore.errors import DamageError
from trainer import checkpoint
from trainer.report import kept
from trainer.report.kept import Facts, Kept


@dataclass(frozen=True)
class Epochs:
    """Values of one split by epoch: ``values[output][metric]`` beside ``epochs``."""

    epochs: Sequence[int]
    values: Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class RunFiles:
    """``config`` is resolved; ``states``: what each feature learnt, as model.json has it; ``curves`` by split."""

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    states: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Epochs]
    learning_rates: Sequence[float]
    evaluation: Mapping[str, Any]
    facts: Facts | None
    kept: Kept | None

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.path.resolve().name

    @property
    def metrics(self) -> Mapping[str, Mapping[str, Mapping[str, float | None]]]:
        """Split → output → metric: those of the summary, and what the final evaluation has besides."""
        found: dict[str, dict[str, dict[str, float | None]]] = {}
        for split, outputs in self.summary["metrics"].items():
            evaluated = self.evaluation.get(split, {}).get("outputs", {})
            found[split] = {
                output: {
                    **metrics,
                    **{name: one["value"] for name, one in evaluated.get(output, {}).get("metrics", {}).items()},
                }
                for output, metrics in outputs.items()
            }
        return found

    def estimate(self, split: str, output: str, metric: str) -> Mapping[str, float | None]:
        """What the final evaluation says of a metric; empty where it says nothing."""
        outputs = self.evaluation.get(split, {}).get("outputs", {})
        found: Mapping[str, float | None] = outputs.get(output, {}).get("metrics", {}).get(metric, {})
        return found

    def zero_targets(self, split: str, output: str) -> int:
        """How many rows of a split percentage errors leave out, because the number to predict is 0."""
        outputs = self.evaluation.get(split, {}).get("outputs", {})
        return int(outputs.get(output, {}).get("zero_targets") or 0)

    def evaluated(self, output: str) -> Mapping[str, Any]:
        """The final evaluation of an output on the split whose predictions were kept; empty where there is none."""
        split = self.facts.split if self.facts else None
        found: Mapping[str, Any] = self.evaluation.get(split or "", {}).get("outputs", {}).get(output, {})
        return found

    @property
    def shown_split(self) -> str:
        """The split that counts: test, else validation, else train."""
        return next(name for name in ("test", "validation", "train") if name in self.summary["metrics"])


def read(path: Path) -> RunFiles:
    """Raises UsageError when there is no finished run at ``path``, DamageError when a file of it is not whole."""
    summary = checkpoint.read_summary(path)
    description = checkpoint.read_model(path)
    facts, predictions = kept.read(path)
    lines = _lines(path / checkpoint.METRICS)
    try:
        by_split: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            if "learning_rate" in line:  # those of an epoch
                by_split.setdefault(line["split"], []).append(line)
        return RunFiles(
            path=path,
            config=description["config"],
            summary=summary,
            states=description["features"],
            curves={split: _epochs(found) for split, found in by_split.items()},
            learning_rates=[line["learning_rate"] for line in by_split.get("train", [])],
            evaluation=_evaluation(path / "evaluation.json"),
            facts=facts,
            kept=predictions,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"{path / checkpoint.METRICS} is damaged ({error!r}). Train again.") from error


def lines(path: Path) -> list[Mapping[str, Any]]:
    """Every line of the metrics of the run at ``path``."""
    return _lines(path / checkpoint.METRICS)


def _epochs(found: Sequence[Mapping[str, Any]]) -> Epochs:
    outputs = found[0]["metrics"]
    return Epochs(
        [line["epoch"] for line in found],
        {
            output: {
                metric: [_number(line["metrics"][output].get(metric)) for line in found] for metric in outputs[output]
            }
            for output in outputs
        },
    )


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _lines(path: Path) -> list[Mapping[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DamageError(f"{path} cannot be read ({error}). Restore the file, or train again.") from error


def _evaluation(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DamageError(f"{path} cannot be read ({error}). Restore the file, or train again.") from error
    return found if isinstance(found, dict) else {}
