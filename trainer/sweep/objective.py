"""What the trials of a sweep are ranked by, and what picks the epoch of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cachestore.errors import nearest
from trainer.checks import DECODERS, LOSS
from trainer.metrics import ALIASES, COMBINED, DIRECTIONS
from trainer.schema import Config
from trainer.schema.hyperopt import Hyperopt


@dataclass(frozen=True)
class Objective:
    """``metric`` of the output ``field``, or of all of them combined, on ``split``; ``goal``: minimize or maximize it."""

    field: str
    metric: str
    split: str
    goal: str


def resolved(settings: Hyperopt, outputs: Sequence[str], found: list[str]) -> Hyperopt:
    """The section with the names that results have: of a metric, and of the output where ``combined`` is that of one."""
    changes: dict[str, Any] = {}
    if settings.metric in ALIASES:
        changes["metric"] = ALIASES[settings.metric]
    if settings.output_feature == COMBINED and len(outputs) == 1:
        changes["output_feature"] = outputs[0]
    elif settings.output_feature not in (None, COMBINED, *outputs):
        hint = nearest(str(settings.output_feature), outputs) or f"; choose one of {', '.join(outputs)}"
        found.append(f"hyperopt.output_feature: there is no output {settings.output_feature!r}{hint}")
    return settings.model_copy(update=changes)


def validation(settings: Hyperopt, trainer: Any, varied: Iterable[str]) -> list[tuple[str, str]]:
    """What ranks trials as what picks their epochs, (path, value), where neither ``trainer`` nor a ``varied`` path says it."""
    given = {key: value for key, value in trainer.items() if value is not None} if isinstance(trainer, Mapping) else {}
    given |= {path.removeprefix("trainer."): None for path in varied}
    field, metric = settings.output_feature, settings.metric
    if field == COMBINED or "validation_metric" in given or field not in (None, given.get("validation_field", field)):
        return []
    chosen = [] if metric is None else [("trainer.validation_metric", metric)]
    return chosen if field is None else [*chosen, ("trainer.validation_field", field)]


def objective(settings: Hyperopt, config: Config, folds: int | None, found: list[str]) -> Objective:
    """Resolved for trials with ``config``; what it asks for and results lack is added to ``found``."""
    kinds = {output.name: output.type for output in config.output_features}
    picked_by = config.validation_field
    field = settings.output_feature or picked_by
    names, usual = LOSS, "loss"
    if field != COMBINED:
        decoder = DECODERS[kinds[field]]
        names, usual = decoder.metric_names, decoder.default_metric
    metric = settings.metric or (config.trainer.validation_metric if field == picked_by else None) or usual
    if metric not in names:
        hint = f"{nearest(metric, names)}; choose one of {', '.join(names)}"
        found.append(f"hyperopt.metric: {field!r} has no {metric!r}{hint}")
    goal = "maximize" if DIRECTIONS.get(metric) == "max" else "minimize"
    if settings.goal not in (None, goal) and metric in DIRECTIONS:
        better = "more" if goal == "maximize" else "less"
        found.append(
            f"hyperopt.goal: {settings.goal}, but {better} {metric} is better; leave goal out, it follows from metric"
        )
    split = settings.split or ("validation" if folds is None else "test")
    return Objective(field, metric, "train" if split == "training" else split, goal)
