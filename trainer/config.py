"""YAML → a frozen config, or one error that lists every fault with its place.

Places read as overrides do: ``input_features.review.encoder.reduce_output`` is a setting of the feature named review.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from cachestore import yaml_source
from cachestore.dataset import Dataset
from cachestore.errors import ConfigError
from cachestore.yaml_source import shown
from trainer import faults, tunings
from trainer.checks import check_balance, check_columns, check_data, check_plateau, check_split, choose_validation
from trainer.combiners import Combiner, ComparatorCombiner
from trainer.feature_sections import check_defaults, read_features
from trainer.older_forms import Rewriting, rewrite
from trainer.overrides import apply_override
from trainer.schema import Config
from trainer.schema.backend import Backend, LocalBackend
from trainer.schema.preparation import Preprocessing
from trainer.schema.training import TrainerConfig

__all__ = ["Config", "load_config"]

_SECTIONS: Final[Mapping[str, Any]] = {
    "combiner": Combiner,
    "trainer": TrainerConfig,
    "preprocessing": Preprocessing,
    "backend": Backend,
    "random_seed": Annotated[int, Field(ge=0, strict=True)],
}
_SECTIONS_WITHIN: Final = ("learning_rate_scheduler", "gradient_clipping", "trainer")
_DEFAULT_TYPES: Final[Mapping[str, str]] = {"combiner": "concat", "backend": "local"}
_INNER_DEFAULT_TYPES: Final[Mapping[str, Mapping[str, str]]] = {
    "trainer": {"optimizer": "adam"},
    "preprocessing": {"split": "random"},
}


def load_config(
    source: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), data: Dataset | None = None
) -> Config:
    """The config in a YAML file or a mapping, after ``overrides`` such as ``trainer.epochs=3``.

    Raises UsageError for a file that cannot be read, ConfigError naming every fault, one a line; beside others also the columns
    that ``data`` lacks, which alone are for those who read it.
    """
    if isinstance(source, Mapping):
        where, written = "the config", _plain_mapping(source, "")
    else:
        where, written = str(source), yaml_source.read(Path(source))
    found: list[str] = []
    rewriting = Rewriting()
    rewrite(written, rewriting)
    for override in overrides:
        try:
            apply_override(written, override)
        except ConfigError as error:
            found.append(str(error))
    if overrides:
        rewrite(written, rewriting)  # they may be in an older form, too
    found += rewriting.found
    config = _read(written, found, data)
    if config is not None:
        return config.with_notices(tuple(dict.fromkeys(rewriting.told))) if rewriting.told else config
    found = list(dict.fromkeys(map(rewriting.as_written, found)))
    head = f"{where}: " if len(found) == 1 else f"{where} has {len(found)} faults:\n"
    raise ConfigError(head + "\n".join(found))


def _read(data: Mapping[str, Any], found: list[str], dataset: Dataset | None) -> Config | None:
    """Every section by itself, so that a fault in one hides none in another, then what they say together."""
    keys = [*Config.model_fields, "defaults"]
    found.extend(f"{key}: {faults.unknown_key('', key, keys)}" for key in data if key not in keys)
    defaults = check_defaults(data.get("defaults"), found)
    inputs = read_features("input_features", data.get("input_features"), defaults, found)
    outputs = read_features("output_features", data.get("output_features"), defaults, found)
    check_columns(inputs, outputs, found)
    sections = {name: _section(name, data[name], found) for name in _SECTIONS if data.get(name) is not None}
    if isinstance(data.get("trainer"), Mapping):
        chosen = choose_validation(data["trainer"], outputs, found)
        if sections["trainer"] is not None:
            sections["trainer"] = sections["trainer"].model_copy(update=chosen)
            check_plateau(sections["trainer"], outputs, found)
    features = [entry.feature for entry in inputs if entry.feature is not None]
    trainer, backend = sections.get("trainer", TrainerConfig()), sections.get("backend", LocalBackend())
    if trainer is not None and len(features) == len(inputs):
        sections["trainer"] = tunings.with_defaults(trainer, data.get("trainer"), features)
        found.extend(tunings.check_trainer(trainer, backend, features))
    combiner = sections.get("combiner")
    if isinstance(combiner, ComparatorCombiner):
        found.extend(combiner.unknown([entry.name for entry in inputs if entry.name is not None]))
    if isinstance(sections.get("preprocessing"), Preprocessing):
        check_split(sections["preprocessing"].split, [*inputs, *outputs], found)
        check_balance(sections["preprocessing"], outputs, found)
    if found:
        if dataset is not None:
            preprocessing = data.get("preprocessing")
            split = preprocessing.get("split") if isinstance(preprocessing, Mapping) else None
            check_data([*inputs, *outputs], split, dataset, found)
        return None
    return Config(
        input_features=tuple(entry.feature for entry in inputs),
        output_features=tuple(entry.feature for entry in outputs),
        **sections,
    )


def _section(name: str, value: Any, found: list[str]) -> Any:
    """A section as its class, None when it has faults."""
    if name in _DEFAULT_TYPES:
        value = faults.with_type(value, _DEFAULT_TYPES[name])
    if isinstance(value, Mapping):
        inner = _INNER_DEFAULT_TYPES.get(name, {})
        value = {
            key: faults.with_type(item, inner[key]) if key in inner else item
            for key, item in value.items()
            if item is not None or key not in (*inner, *_SECTIONS_WITHIN)
        }
    section, faulty = faults.validated(_SECTIONS[name], value, name)
    found.extend(f"{faults.joined((name, *fault.path))}: {fault.why}" for fault in faulty)
    return section


def _plain_mapping(value: Mapping[Any, Any], place: str) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{place or 'the config'}: the key {key!r} must be text")
    return {key: _plain(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}


def _plain(value: Any, place: str) -> Any:
    """A copy of its own, of the types YAML has."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return _plain_mapping(value, place)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ConfigError(f"{place}: a {type(value).__name__} cannot stand in a config: {shown(value)}")
