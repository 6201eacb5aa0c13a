"""Ludwig's older and flat forms, written as today's before anything is checked.

``training:``, ``type: numerical``, ``trainable`` beside ``encoder: bert``, ``num_fc_layers`` at an output, and the like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trainer import faults
from trainer.schema.backend import BackendTrainer
from trainer.schema.inputs import EncodedInput, InputFeature
from trainer.schema.outputs import OutputFeature
from trainer.schema.tuning import Tuning

_CLASSES: Final[Mapping[str, Any]] = {"input_features": InputFeature, "output_features": OutputFeature}
_PART: Final = {"input_features": "encoder", "output_features": "decoder"}
_TYPES: Final = {"numerical": "number"}
_STRATEGIES: Final = {"backfill": "bfill", "pad": "ffill"}
_LENGTHS: Final = ("max_sequence_length", "sequence_length_limit", "word_sequence_length_limit")
_SCHEDULE: Final = {
    "decay_rate": "decay_rate",
    "decay_steps": "decay_steps",
    "staircase": "staircase",
    "learning_rate_warmup_epochs": "warmup_evaluations",
    "reduce_learning_rate_on_plateau": "reduce_on_plateau",
    "reduce_learning_rate_on_plateau_patience": "reduce_on_plateau_patience",
    "reduce_learning_rate_on_plateau_rate": "reduce_on_plateau_rate",
    "reduce_learning_rate_eval_metric": "reduce_eval_metric",
    "reduce_learning_rate_eval_split": "reduce_eval_split",
}
_TRAINER: Final = {"regularizer": "regularization_type", "increase_batch_size_on_plateau_max": "max_batch_size"}
_NOT_OURS: Final = ("horovod", "deepspeed")
_HOROVOD: Final = (
    "strategy: horovod runs as ddp, which averages gradients in the same way: Horovod's last release, 0.28.1 of June 2023, does not "
    "build against torch 2.1 or later."
)
_COMBINER: Final = {"fc_size": "output_size", "bias": "use_bias"}
_DECODER: Final = {
    "fc_size": "fc_output_size",
    "activation": "fc_activation",
    "norm": "fc_norm",
    "dropout": "fc_dropout",
    "bias": "fc_use_bias",
}


@dataclass
class Rewriting:
    """``moved``: a place as it is now → where the user wrote it. ``found``: faults, as one value for two forms.

    ``told``: what is not a fault, and yet done otherwise than written.
    """

    moved: dict[str, str] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def as_written(self, fault: str) -> str:
        """A fault, ``place: why``, with the place that the user wrote."""
        place, colon, why = fault.partition(": ")
        for now, before in sorted(self.moved.items(), key=lambda item: -len(item[0])):
            if place == now or place.startswith((f"{now}.", f"{now}[")):
                return f"{before}{place[len(now) :]}{colon}{why}"
        return fault

    def move(self, old: Any, old_key: str, new: dict[str, Any], new_key: str, places: tuple[str, str]) -> None:
        """``old[old_key]`` to ``new[new_key]``; a fault where something is there already. ``places``: of ``old`` and ``new``."""
        before, now = (f"{place}.{key}".lstrip(".") for place, key in zip(places, (old_key, new_key), strict=True))
        value = old.pop(old_key)
        if new.get(new_key) is not None:
            self.found.append(f"{before}: is written as {now} today, and that is here as well; leave this one out")
            return
        new[new_key] = value
        self.moved[now] = before


def rewrite(data: dict[str, Any], rewriting: Rewriting) -> None:
    """Change ``data`` in place. What is not of the shape it should have is left for the checks to name."""
    if "training" in data:
        rewriting.move(data, "training", data, "trainer", ("", ""))
    if isinstance(trainer := data.get("trainer"), dict):
        _trainer(trainer, rewriting)
        _workers(data, trainer, rewriting)
    _backend(data, rewriting)
    if isinstance(combiner := data.get("combiner"), dict):
        _renamed(combiner, _COMBINER, "combiner", rewriting)
        for index, layer in enumerate(combiner["fc_layers"] if isinstance(combiner.get("fc_layers"), list) else ()):
            if isinstance(layer, dict):
                _renamed(layer, _COMBINER, f"combiner.fc_layers[{index}]", rewriting)
    if isinstance(preprocessing := data.get("preprocessing"), dict):
        _split(preprocessing, rewriting)
        _preprocessing_of_types(data, preprocessing, rewriting)
    if isinstance(defaults := data.get("defaults"), dict):
        for old, new in _TYPES.items():
            if old in defaults:
                rewriting.move(defaults, old, defaults, new, ("defaults", "defaults"))
        for kind, sections in defaults.items():
            if isinstance(sections, dict):
                _sections(sections, kind, f"defaults.{kind}", rewriting)
    for side in _CLASSES:
        for place, feature in _features(data, side):
            if feature.get("type") in _TYPES:
                feature["type"] = _TYPES[feature["type"]]
            kind = str(feature.get("type"))
            _sections(feature, kind, place, rewriting)
            _flat(side, feature, kind, place, rewriting)


def _features(data: Mapping[str, Any], side: str) -> Iterator[tuple[str, dict[str, Any]]]:
    features = data.get(side)
    for index, feature in enumerate(features if isinstance(features, list) else ()):
        if isinstance(feature, dict):
            yield faults.place_of(side, index, feature), feature


def _renamed(section: dict[str, Any], names: Mapping[str, str], place: str, rewriting: Rewriting) -> None:
    for old, new in names.items():
        if old in section:
            rewriting.move(section, old, section, new, (place, place))


def _trainer(trainer: dict[str, Any], rewriting: Rewriting) -> None:
    if trainer.get("eval_batch_size") == 0:
        trainer["eval_batch_size"] = None
    _renamed(trainer, _TRAINER, "trainer", rewriting)
    schedule = trainer.get("learning_rate_scheduler") or {}
    if not isinstance(schedule, dict):
        return
    place = "trainer.learning_rate_scheduler"
    if isinstance(trainer.get("decay"), bool):  # only ever on or off; which decay, today's key says
        trainer["decay"] = "exponential" if trainer["decay"] else None
        rewriting.move(trainer, "decay", schedule, "decay", ("trainer", place))
    for old, new in _SCHEDULE.items():
        if old in trainer:
            rewriting.move(trainer, old, schedule, new, ("trainer", place))
    if schedule:
        trainer["learning_rate_scheduler"] = schedule


def _workers(data: dict[str, Any], trainer: dict[str, Any], rewriting: Rewriting) -> None:
    """``trainer: {strategy: ddp, num_workers: 2}`` is ``backend: {trainer: {strategy: ddp, num_workers: 2}}``."""
    written = [key for key in BackendTrainer.model_fields if key in trainer]
    backend = faults.with_type({} if data.get("backend") is None else data["backend"])
    if not written or not isinstance(backend, dict):
        return
    workers = {} if backend.get("trainer") is None else backend["trainer"]
    if not isinstance(workers, dict):
        return
    data["backend"] = {**backend, "trainer": workers}
    for key in written:
        rewriting.move(trainer, key, workers, key, ("trainer", "backend.trainer"))


def _backend(data: dict[str, Any], rewriting: Rewriting) -> None:
    """What ran elsewhere than in Ray, or by horovod: `local` backends whose strategy is ddp."""
    backend = faults.with_type(data.get("backend"))
    if not isinstance(backend, dict):
        return
    workers = {} if backend.get("trainer") is None else backend["trainer"]
    if not isinstance(workers, dict):
        return
    if backend.get("type") == "horovod":
        workers.setdefault("strategy", "horovod")
        data["backend"] = {**backend, "type": "local", "trainer": workers}
    strategy = workers.get("strategy")
    if isinstance(strategy, dict) and (strategy.keys() == {"type"} or strategy.get("type") in _NOT_OURS):
        workers["strategy"] = strategy = strategy["type"]
    if strategy == "local":
        workers["strategy"] = None
    elif strategy == "horovod":
        workers["strategy"] = "ddp"
        rewriting.told.append(_HOROVOD)


def _split(preprocessing: dict[str, Any], rewriting: Rewriting) -> None:
    older = {
        key: preprocessing.pop(key)
        for key in ("force_split", "split_probabilities", "stratify")
        if key in preprocessing
    }
    older = {key: value for key, value in older.items() if value not in (None, False)}
    if not older:
        return
    written = ", ".join(f"preprocessing.{key}" for key in older)
    if preprocessing.get("split") is not None:
        rewriting.found.append(
            f"{written}: is written as preprocessing.split today, and that is here as well; leave this out"
        )
        return
    split: dict[str, Any] = {"type": "stratify" if "stratify" in older else "random"}
    for old, new in (("stratify", "column"), ("split_probabilities", "probabilities")):
        if old in older:
            split[new] = older[old]
            rewriting.moved[f"preprocessing.split.{new}"] = f"preprocessing.{old}"
    preprocessing["split"] = split


def _preprocessing_of_types(data: dict[str, Any], preprocessing: dict[str, Any], rewriting: Rewriting) -> None:
    """``preprocessing: {text: {…}}`` is ``defaults: {text: {preprocessing: {…}}}``."""
    known = {tag for annotation in _CLASSES.values() for tag in faults.tags(annotation)}
    for old in [key for key in preprocessing if _TYPES.get(key, key) in known]:
        kind = _TYPES.get(old, old)
        defaults = data.get("defaults") or {}
        sections = defaults.get(kind) or {} if isinstance(defaults, dict) else None
        if not isinstance(sections, dict):
            continue
        data["defaults"] = {**defaults, kind: sections}
        rewriting.move(preprocessing, old, sections, "preprocessing", ("preprocessing", f"defaults.{kind}"))


def _sections(feature: dict[str, Any], kind: str, place: str, rewriting: Rewriting) -> None:
    """What a feature, or the defaults of a type, has under ``encoder``, ``preprocessing`` and ``loss``."""
    preprocessing = feature.get("preprocessing")
    encoder = feature.get("encoder")
    if isinstance(encoder, dict) and "cache_encoder_embeddings" in encoder and preprocessing in (None, {}):
        feature["preprocessing"] = preprocessing = {}
    if isinstance(encoder, dict) and isinstance(preprocessing, dict) and "cache_encoder_embeddings" in encoder:
        key = "cache_encoder_embeddings"
        rewriting.move(encoder, key, preprocessing, key, (f"{place}.encoder", f"{place}.preprocessing"))
    if isinstance(preprocessing, dict):
        strategy = preprocessing.get("missing_value_strategy")
        if isinstance(strategy, str) and strategy in _STRATEGIES:
            preprocessing["missing_value_strategy"] = _STRATEGIES[strategy]
        for length in _LENGTHS if kind == "text" else ():
            if length not in preprocessing:
                continue
            feature["encoder"] = encoder = faults.with_type(
                {} if feature.get("encoder") is None else feature["encoder"]
            )
            if isinstance(encoder, dict):
                places = (f"{place}.preprocessing", f"{place}.encoder")
                rewriting.move(preprocessing, length, encoder, "max_sequence_length", places)
    loss = feature.get("loss")
    if isinstance(loss, dict) and type(loss.get("class_weights")) in (int, float) and loss["class_weights"] == 1:
        loss["class_weights"] = None  # which 1 once meant


def _flat(side: str, feature: dict[str, Any], kind: str, place: str, rewriting: Rewriting) -> None:
    """Settings of an encoder or a decoder that stand at the feature, as Ludwig before 0.6 had them."""
    owner = next((found for found in faults.classes(_CLASSES[side]) if kind in faults.tags(found)), None)
    part = _PART[side]
    if owner is None or part not in owner.model_fields:
        return
    written = faults.with_type({} if feature.get(part) is None else feature[part])
    if not isinstance(written, dict):
        return
    renamed = _DECODER if side == "output_features" else {}
    keys = [*_keys(owner.model_fields[part].annotation, written.get("type"))]
    if kind in faults.tags(EncodedInput) and side == "input_features":
        keys += Tuning.model_fields
    flat = [key for key in feature if key not in owner.model_fields and renamed.get(key, key) in keys]
    for key in flat:
        rewriting.move(feature, key, written, renamed.get(key, key), (place, f"{place}.{part}"))
    if flat:
        feature[part] = written


def _keys(annotation: Any, kind: Any) -> list[str]:
    """The settings of the part of that type; those of all types where there is no such."""
    options = faults.classes(annotation)
    chosen = [option for option in options if kind in faults.tags(option)] or options
    return [key for option in chosen for key in option.model_fields if key != "type"]
