"""A config with a hyperopt section, folds and seeds → the trials of a sweep, each with a config of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cachestore import yaml_source
from cachestore.dataset import Dataset
from cachestore.errors import ConfigError, UsageError, nearest
from cachestore.yaml_source import shown
from trainer import faults
from trainer.config import load_config
from trainer.overrides import apply_override
from trainer.schema import Config
from trainer.schema.hyperopt import SPACES, Grid, Hyperopt
from trainer.schema.preparation import GroupSplit, KFoldSplit, RandomSplit, StratifySplit
from trainer.sweep.objective import Objective, objective, resolved, validation
from trainer.sweep.space import grid, points

SECTION: Final = "hyperopt"
_SIDES: Final = ("input_features", "output_features")


@dataclass(frozen=True)
class Trial:
    """One training of a sweep. Trials of one ``candidate`` have equal ``values``, and differ in seed and fold.

    ``number`` counts all trials of a sweep from 0. ``fold`` is None without folds.
    """

    number: int
    candidate: int
    values: Mapping[str, Any]
    seed: int
    fold: int | None
    config: Config


@dataclass(frozen=True)
class Plan:
    """Every trial of a sweep, what the winner of each candidate is trained with, and what they are ranked by."""

    trials: tuple[Trial, ...]
    finals: tuple[Config, ...]
    objective: Objective


def make_plan(
    source: Path | str | Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    grids: Sequence[str] = (),
    folds: int | None = None,
    seeds: int = 1,
    files: bool = False,
    data: Dataset | None = None,
) -> Plan:
    """The trials, in the order of the section: grids first, then draws; the folds and seeds of a candidate together.

    ``grids``: ``path=v1,v2``, each instead of that path in the section. ``files``: validation or test rows have a file, so
    a config without a split has none. Raises ConfigError naming every fault of every trial, beside others also the columns
    that ``data`` lacks.
    """
    _check_counts(folds, seeds, files)
    base = _plain(source)
    found: list[str] = []
    for override in overrides:
        try:
            apply_override(base, override)
        except ConfigError as error:
            found.append(str(error))
    section = base.pop(SECTION, None)
    settings = _settings(section, [parse_grid(text) for text in grids], base, found)
    if settings is not None:
        settings = resolved(settings, _names(base, "output_features"), found)
    if settings is None or found:
        raise ConfigError(_report(source, found))
    if not settings.parameters and folds is None and seeds == 1:
        raise ConfigError(
            "nothing varies: give the config a hyperopt section with parameters, or --grid PATH=V1,V2, --folds or --seeds"
        )
    seed = base.get("random_seed")
    seed = seed if isinstance(seed, int) else int(Config.model_fields["random_seed"].default)
    candidates = points(settings, seed) if settings.parameters else [{}]
    configs: list[Config] = []
    faulty: dict[str, list[str]] = {}
    chosen = validation(settings, base.get("trainer") or base.get("training"), settings.parameters)
    for values in candidates:
        try:
            changes = [f"{path}={json.dumps(value)}" for path, value in [*values.items(), *chosen]]
            configs.append(load_config(base, changes, data))
        except ConfigError as error:
            told = ", ".join(f"{path}={short(value)}" for path, value in values.items())
            _, _, lines = str(error).partition(": " if "\n" not in str(error) else ":\n")
            for line in lines.splitlines():
                written = line.replace("trainer.validation_metric:", "hyperopt.metric:") if chosen else line
                faulty.setdefault(written, []).append(told)
    if faulty:
        everywhere = len(candidates)
        raise ConfigError(
            _report(
                source, [line if len(of) == everywhere else f"{line} (with {of[0]})" for line, of in faulty.items()]
            )
        )
    ranked_by = objective(settings, configs[0], folds, found)
    if found:
        raise ConfigError(_report(source, found))
    pin = seed if seeds > 1 or "random_seed" in settings.parameters else None
    finals = tuple(_with_split(config, None, None, pin, files) for config in configs)
    trials: list[Trial] = []
    for candidate, (values, config) in enumerate(zip(candidates, configs, strict=True)):
        for repeat in range(seeds):
            for fold in range(folds) if folds is not None else (None,):
                split = _with_split(config, folds, fold, pin, files)
                own = split.model_copy(update={"random_seed": config.random_seed + repeat})
                trials.append(Trial(len(trials), candidate, values, own.random_seed, fold, own))
    return Plan(tuple(trials), finals, ranked_by)


def parse_grid(text: str) -> tuple[str, tuple[Any, ...]]:
    """``path=v1,v2`` → the path and its values, each read as YAML."""
    path, equals, values = text.partition("=")
    if not equals or not path.strip() or not values.strip():
        raise ConfigError(
            f"{text!r} is no grid; write it as path=value,value, for example trainer.learning_rate=0.001,0.01"
        )
    found = yaml_source.parse(f"[{values}]", f"--grid {path.strip()}")
    return path.strip(), tuple(found)


def short(value: Any) -> str:
    """A value as a table shows it: an encoder by its type and settings."""
    if isinstance(value, Mapping):
        rest = [f"{key}={short(item)}" for key, item in value.items() if key != "type"]
        kind = str(value.get("type", ""))
        return f"{kind}({', '.join(rest)})" if rest and kind else kind or ", ".join(rest)
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if not isinstance(value, str) else value


def _check_counts(folds: int | None, seeds: int, files: bool) -> None:
    if seeds < 1:
        raise UsageError("--seeds must be at least 1.")
    if folds is not None and folds < 2:
        raise UsageError("--folds must be at least 2.")
    if folds is not None and files:
        raise UsageError("--folds holds out every part of DATA in turn; leave --validation and --test out.")


def _plain(source: Path | str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(source, Mapping):
        return copy.deepcopy(dict(source))
    return yaml_source.read(Path(source))


def _settings(
    section: Any, grids: Sequence[tuple[str, tuple[Any, ...]]], base: Mapping[str, Any], found: list[str]
) -> Hyperopt | None:
    """The section with every parameter's full path, and the grids of the command line in it."""
    section = {} if section is None else section
    if not isinstance(section, Mapping):
        found.append(f"{SECTION}: must be a mapping with parameters, not {shown(section)}")
        return None
    parameters = section.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        found.append(f"{SECTION}.parameters: must be a mapping of paths to spaces, not {shown(parameters)}")
        return None
    spaces: dict[str, Any] = {}
    for path, value in (parameters or {}).items():
        place = f"{SECTION}.parameters.{path}"
        space = _space(place, value, found)
        full = _full_path(place, str(path), base, found)
        if space is not None and full is not None:
            spaces[full] = space
    for path, space in grid(dict(grids)).items():
        full = _full_path(f"--grid {path}", path, base, found)
        if full is not None:
            spaces[full] = space
    rest = {key: value for key, value in section.items() if value is not None and key != "parameters"}
    for key, default in (("executor", "local"), ("search_alg", "variant_generator")):
        if key in rest:
            rest[key] = faults.with_type(rest[key], default)
    settings, faulty = faults.validated(Hyperopt, {**rest, "parameters": spaces}, SECTION)
    found.extend(f"{faults.joined((SECTION, *fault.path))}: {fault.why}" for fault in faulty)
    return settings if isinstance(settings, Hyperopt) else None


def _space(place: str, value: Any, found: list[str]) -> Any:
    if isinstance(value, (list, tuple)) and value:
        return Grid(values=tuple(value))
    classes = {cls.model_fields["space"].default: cls for cls in SPACES}
    if not isinstance(value, Mapping):
        found.append(f"{place}: must be a list of values or a mapping with a space, not {shown(value)}")
        return None
    kind = value.get("space")
    if kind not in classes:
        hint = nearest(kind, classes) if isinstance(kind, str) else ""
        why = "is missing" if kind is None else f"there is no {shown(kind)}{hint}"
        found.append(f"{place}.space: {why}; choose one of {', '.join(classes)}")
        return None
    space, faulty = faults.validated(classes[kind], value, f"{SECTION}.parameters")
    found.extend(f"{place}{'.' if fault.path else ''}{faults.joined(fault.path)}: {fault.why}" for fault in faulty)
    return space


def _full_path(place: str, path: str, base: Mapping[str, Any], found: list[str]) -> str | None:
    """Ludwig writes ``review.encoder`` for what is ``input_features.review.encoder`` here; both are taken."""
    first = path.split(".", maxsplit=1)[0]
    if first == "defaults" or first in Config.model_fields:
        return path
    names: list[str] = []
    for side in _SIDES:
        for name in _names(base, side):
            names.append(name)
            if path.startswith(f"{name}."):
                return f"{side}.{path}"
    sections = [*Config.model_fields, "defaults", *names]
    found.append(
        f"{place}: no section or feature is called {first!r}{nearest(first, sections)}; a path is one as in --set"
    )
    return None


def _names(base: Mapping[str, Any], side: str) -> list[str]:
    """Of features as written."""
    features = base.get(side)
    found = [each.get("name") for each in features if isinstance(each, Mapping)] if isinstance(features, list) else []
    return [name for name in found if isinstance(name, str)]


def _with_split(config: Config, folds: int | None, fold: int | None, pin: int | None, files: bool) -> Config:
    """The config with the split of a trial. ``pin``: its seed, so that trials of other seeds have the same rows."""
    split = config.preprocessing.split
    if folds is not None and fold is not None:
        split = _fold(split, folds, fold)
    elif split is None and not files:
        split = RandomSplit()
    if pin is not None and split is not None and getattr(split, "seed", 0) is None:
        split = split.model_copy(update={"seed": pin})
    if split is config.preprocessing.split:
        return config
    return config.model_copy(update={"preprocessing": config.preprocessing.model_copy(update={"split": split})})


def _fold(split: Any, folds: int, fold: int) -> KFoldSplit:
    """One of ``folds``, by the column or the groups that the config's own split goes by."""
    match split:
        case KFoldSplit():
            return split.model_copy(update={"folds": folds, "fold": fold})
        case StratifySplit():
            return KFoldSplit(folds=folds, fold=fold, column=split.column, seed=split.seed)
        case GroupSplit():
            return KFoldSplit(folds=folds, fold=fold, group=split.column, seed=split.seed)
    return KFoldSplit(folds=folds, fold=fold, seed=getattr(split, "seed", None))


def _report(source: Any, found: Sequence[str]) -> str:
    where = "the config" if isinstance(source, Mapping) else str(source)
    lines = list(dict.fromkeys(found))
    return (f"{where}: " if len(lines) == 1 else f"{where} has {len(lines)} faults:\n") + "\n".join(lines)
