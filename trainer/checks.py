"""What no single section of a config can know: how its features, split and validation metric fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachestore.errors import nearest
from trainer.decoders import BinaryDecoder, Classifier, NumberDecoder
from trainer.feature_sections import Entry
from trainer.metrics import COMBINED
from trainer.schema.preparation import StratifySplit
from trainer.schema.training import TrainerConfig

_METRICS: Final[Mapping[str, tuple[str, ...]]] = {
    "category": Classifier.metric_names,
    "binary": BinaryDecoder.metric_names,
    "number": NumberDecoder.metric_names,
}


def check_columns(inputs: Sequence[Entry], outputs: Sequence[Entry], found: list[str]) -> None:
    """Names are unique and free, and no input reads the column an output is to predict."""
    seen: dict[str, str] = {}
    for entry in [*inputs, *outputs]:
        if entry.name is None:
            continue
        side = entry.place.split("_", 1)[0]
        if seen.setdefault(entry.name, side) != side:
            found.append(f"{entry.place}: is an input as well; the model would be given the answer. Remove one")
        elif sum(other.name == entry.name for other in (inputs if side == "input" else outputs)) > 1:
            found.append(f"{entry.place}: two features have this name; rename one and set its column")
    found.extend(
        f"{entry.place}: metrics have what all outputs have in common under this name; choose another and set its column"
        for entry in outputs
        if entry.name == COMBINED
    )
    answers = {entry.feature.column: entry.name for entry in outputs if entry.feature is not None}
    for entry in inputs:
        if entry.feature is None or entry.feature.column not in answers:
            continue
        output = answers[entry.feature.column]
        if output != entry.name:
            found.append(
                f"{entry.place}.column: {entry.feature.column!r} is the column of the output {output!r}; "
                "the model would be given the answer. Remove one"
            )


def choose_validation(trainer: TrainerConfig, outputs: Sequence[Entry], found: list[str]) -> TrainerConfig:
    """The trainer section; ``validation_field`` is set where one output alone has the metric, as in Ludwig."""
    field, metric = trainer.validation_field, trainer.validation_metric
    names = [entry.name for entry in outputs if entry.name is not None]
    if field is not None and field not in names:
        hint = nearest(field, names) or f"; choose one of {', '.join(names)}"
        found.append(f"trainer.validation_field: there is no output {field!r}{hint}")
        return trainer
    known = {entry.name: _METRICS[entry.feature.type] for entry in outputs if entry.feature is not None and entry.name}
    if metric is None or len(known) < len(outputs):
        return trainer
    if field is not None:
        if metric not in known[field]:
            found.append(_no_metric(metric, f"the output {field!r}", known[field]))
        return trainer
    having = [name for name, metrics in known.items() if metric in metrics]
    if not having:
        every = tuple(dict.fromkeys(name for metrics in known.values() for name in metrics))
        found.append(_no_metric(metric, "no output" if len(names) > 1 else f"the output {names[0]!r}", every))
    elif len(having) > 1 and metric != "loss":
        found.append(
            f"trainer.validation_metric: {', '.join(having)} all have {metric!r}; "
            "set trainer.validation_field to the one that counts"
        )
    else:
        return trainer.model_copy(update={"validation_field": having[0]})
    return trainer


def _no_metric(metric: str, whose: str, metrics: Sequence[str]) -> str:
    who = f"{whose} has {metric!r}" if whose == "no output" else f"{whose} has no {metric!r}"
    return f"trainer.validation_metric: {who}{nearest(metric, metrics)}; choose one of {', '.join(metrics)}"


def check_split(split: Any, entries: Sequence[Entry], found: list[str]) -> None:
    """A column that is a feature must be one with few values; any other is looked at when the data is read."""
    if not isinstance(split, StratifySplit):
        return
    for entry in entries:
        feature = entry.feature
        if feature is not None and feature.column == split.column and feature.type not in ("category", "binary"):
            found.append(
                f"preprocessing.split.column: {split.column!r} is a {feature.type} feature; "
                "stratify needs a column of categories or of true and false"
            )
            return
