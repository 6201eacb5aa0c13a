"""What no single section of a config can know: how its features, split and validation metric fit together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachestore.dataset import Dataset
from cachestore.errors import nearest
from trainer.decoders import BinaryDecoder, Classifier, Decoder, NumberDecoder, SetDecoder, VectorDecoder
from trainer.feature_sections import Entry
from trainer.metrics import ALIASES, COMBINED
from trainer.schema.preparation import KFoldSplit, Preprocessing, StratifySplit
from trainer.schema.training import TrainerConfig

DECODERS: Final[Mapping[str, type[Decoder]]] = {
    "category": Classifier,
    "binary": BinaryDecoder,
    "number": NumberDecoder,
    "set": SetDecoder,
    "vector": VectorDecoder,
}
_METRICS: Final = {kind: decoder.metric_names for kind, decoder in DECODERS.items()}
LOSS: Final[tuple[str, ...]] = ("loss",)  # what all outputs have in common
_SHOWN: Final = 12
_VALIDATION: Final = ("validation_field", "validation_metric")


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
    answers = {entry.column: entry.name for entry in outputs if entry.column is not None}
    for entry in inputs:
        if entry.column not in answers:
            continue
        output = answers[entry.column]
        if output != entry.name:
            found.append(
                f"{entry.place}.column: {entry.column!r} is the column of the output {output!r}; "
                "the model would be given the answer. Remove one"
            )


def check_data(entries: Sequence[Entry], split: Any, dataset: Dataset, found: list[str]) -> None:
    """What features and split need is in the data."""
    wanted = [(entry.place, name) for entry in entries for name in entry.reads]
    for key in ("column", "group"):
        column = split.get(key) if isinstance(split, Mapping) else None
        if isinstance(column, str) and column:
            wanted.append((f"preprocessing.split.{key}", column))
    lacking, there = dataset.lacking([name for _, name in wanted])
    for place, name in wanted:
        if name in lacking:
            hint = nearest(name, there) or f"; it has {', '.join(there[:_SHOWN])}{', …' if len(there) > _SHOWN else ''}"
            found.append(f"{place}: {dataset.label} has no column {name!r}{hint}")


def choose_validation(trainer: Mapping[str, Any], outputs: Sequence[Entry], found: list[str]) -> dict[str, str]:
    """As ``_choose_validation``; a metric under another of its names gets the one that results have."""
    metric = trainer.get("validation_metric")
    if not isinstance(metric, str) or metric not in ALIASES:
        return _choose_validation(trainer, outputs, found)
    renamed = {**trainer, "validation_metric": ALIASES[metric]}
    return {"validation_metric": ALIASES[metric], **_choose_validation(renamed, outputs, found)}


def _choose_validation(trainer: Mapping[str, Any], outputs: Sequence[Entry], found: list[str]) -> dict[str, str]:
    """What the trainer section, as written, leaves open of the validation: the field where one output alone has the metric, as in Ludwig,
    or alone is measured by it when nothing is said.

    ``combined`` is the sum of the losses of all outputs.
    """
    field, metric = (text if isinstance(text := trainer.get(key), str) else None for key in _VALIDATION)
    names = [entry.name for entry in outputs if entry.name is not None]
    known = {
        entry.name: _METRICS[entry.kind] for entry in outputs if entry.name and entry.kind and entry.kind in _METRICS
    }
    if field == COMBINED:
        if metric not in (None, "loss"):
            found.append(_no_metric(str(metric), "'combined'", LOSS))
        return {"validation_metric": "loss", "validation_field": names[0] if len(names) == 1 else COMBINED}
    if field is not None and field not in names:
        hint = nearest(field, names) or f"; choose one of {', '.join(names)}"
        found.append(f"trainer.validation_field: there is no output {field!r}{hint}")
    if metric is None:
        return {}
    every = tuple(dict.fromkeys(name for metrics in (known or _METRICS).values() for name in metrics))
    having = [name for name, metrics in known.items() if metric in metrics]
    usual = [
        entry.name for entry in outputs if entry.name in having and DECODERS[str(entry.kind)].default_metric == metric
    ]
    having = usual if len(usual) == 1 else having
    if field in known:
        if metric not in known[field]:
            found.append(_no_metric(metric, f"the output {field!r}", known[field]))
    elif not having and (len(known) == len(outputs) or not any(metric in metrics for metrics in _METRICS.values())):
        found.append(_no_metric(metric, f"the output {names[0]!r}" if len(names) == 1 else "no output", every))
    elif field is None and len(having) > 1 and metric != "loss":
        found.append(
            f"trainer.validation_metric: {', '.join(having)} all have {metric!r}; "
            "set trainer.validation_field to the one that counts"
        )
    elif field is None and having:
        return {"validation_field": having[0]}
    return {}


def check_plateau(trainer: TrainerConfig, outputs: Sequence[Entry], found: list[str]) -> None:
    """The metric by which the learning rate is reduced is one that the validation field has."""
    metric = trainer.learning_rate_scheduler.plateau_metric
    chosen = next((entry for entry in outputs if trainer.validation_field in (None, entry.name)), None)
    if trainer.validation_field == COMBINED:
        whose, metrics = "'combined'", LOSS
    elif chosen is not None and chosen.kind in _METRICS:
        whose, metrics = f"the output {chosen.name!r}", _METRICS[chosen.kind]
    else:
        return
    if metric is not None and metric not in metrics:
        found.append(_no_metric(metric, whose, metrics, "trainer.learning_rate_scheduler.reduce_eval_metric"))


def _no_metric(metric: str, whose: str, metrics: Sequence[str], place: str = "trainer.validation_metric") -> str:
    who = f"{whose} has {metric!r}" if whose == "no output" else f"{whose} has no {metric!r}"
    return f"{place}: {who}{nearest(metric, metrics)}; choose one of {', '.join(metrics)}"


def check_split(split: Any, entries: Sequence[Entry], found: list[str]) -> None:
    """A column that is a feature must be one with few values; any other is looked at when the data is read."""
    if not isinstance(split, StratifySplit | KFoldSplit):
        return
    for entry in entries:
        feature = entry.feature
        if feature is not None and feature.column == split.column and feature.type not in ("category", "binary"):
            found.append(
                f"preprocessing.split.column: {split.column!r} is a {feature.type} feature; "
                "stratify needs a column of categories or of true and false"
            )
            return


def check_balance(preprocessing: Preprocessing, outputs: Sequence[Entry], found: list[str]) -> None:
    """Rows are repeated or left out for the classes of one output."""
    for key in ("oversample_minority", "undersample_majority"):
        if getattr(preprocessing, key) is None:
            continue
        kinds = [entry.kind for entry in outputs]
        if len(kinds) != 1 or kinds[0] not in ("category", "binary"):
            found.append(f"preprocessing.{key}: takes one output, a category or a binary; leave it out")
