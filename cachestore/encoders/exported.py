"""Encoders that a run trained and left behind as plain models: ``RUN#FEATURE`` names that of an input feature.

Each lies in a folder of its own, RUN/encoders/FEATURE, and beside its files stands what opens it: the settings of a frozen
encoder, without the place, in encoder.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from cachestore.errors import CachestoreError, ConfigError, DamageError, nearest

FOLDER: Final = "encoders"
SETTINGS: Final = "encoder.json"
WEIGHTS: Final = "model.safetensors"
ADAPTERS: Final = "adapters"
SUMMARY: Final = "summary.json"
"""What a run writes last."""
NOT_MERGED: Final = frozenset({"prompt_tuning", "adaption_prompt"})
"""Types of adapters that add tokens, not weights: no plain model has their vectors."""
_PLACES: Final = ("pretrained_model_name_or_path", "weights_path")


def folder(run: Path, feature: str) -> Path:
    """Where the encoder of a feature lies in a run's directory."""
    return run / FOLDER / _quoted(feature)


def folders(run: Path) -> dict[str, Path]:
    """Where the encoders of a run lie, by feature; an encoder that could not be written as a plain model is not among them."""
    found = sorted(path.parent for path in run.glob(f"{FOLDER}/*/{SETTINGS}"))
    return {unquote(path.name): path for path in found}


def adapter_folder(run: Path, feature: str) -> Path:
    """Where the adapter of a feature's encoder lies in a run's directory."""
    return run / ADAPTERS / _quoted(feature)


def place(settings: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Settings with the place of the files in ``directory``: torchvision's are a file of weights."""
    if settings.get("type") == "torchvision":
        return {**settings, "weights_path": str(directory / WEIGHTS)}
    return {**settings, "pretrained_model_name_or_path": str(directory)}


def dereferenced(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of an encoder whose type or place may be a reference: that encoder's own, and what else is written over them.

    Raises ConfigError when a reference leads nowhere, or to an encoder of another type than the one that is written, DamageError
    when files of the run are gone.
    """
    kind = value.get("type")
    if isinstance(kind, str) and _is_reference(kind):
        for key in _PLACES:
            if value.get(key) is not None:
                raise ConfigError(f"encoder.{key}: {kind} is a model already; leave one of them out")
        return {
            **_settings(kind, "type"),
            **{key: item for key, item in value.items() if key not in ("type", *_PLACES)},
        }
    for key in _PLACES:
        name = value.get(key)
        if isinstance(name, str) and _is_reference(name):
            found = _settings(name, key)
            if found["type"] != kind:
                raise ConfigError(f"encoder.type: {name} is an encoder of type {found['type']}, not {kind!r}")
            return {**found, **{other: item for other, item in value.items() if other not in _PLACES}}
    return value


def _is_reference(name: str) -> bool:
    return "#" in name and not Path(name).expanduser().exists()


def _settings(reference: str, key: str) -> dict[str, Any]:
    run, feature = _parts(reference)
    directory = folder(run, feature)
    try:
        found = json.loads((directory / SETTINGS).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise _why_not(run, feature, f"encoder.{key}: {reference}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"encoder.{key}: {directory / SETTINGS} cannot be read ({error}); train again") from error
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise ConfigError(f"encoder.{key}: {directory / SETTINGS} names no type of encoder; train again")
    return place(found, directory.absolute())


def _parts(reference: str) -> tuple[Path, str]:
    """The run and the feature: both may have # in their names, so the first run that is there."""
    marks = [at for at, letter in enumerate(reference) if letter == "#"]
    splits = [(Path(reference[:at]).expanduser(), reference[at + 1 :]) for at in marks]
    return next(((run, feature) for run, feature in splits if run.is_dir()), splits[0])


def _why_not(run: Path, feature: str, named: str) -> CachestoreError:
    if not run.is_dir():
        return ConfigError(f"{named}: there is no directory {run.absolute()}")
    there = folders(run)
    if (config := adapter_folder(run, feature) / "adapter_config.json").is_file():
        if _kind(config) in NOT_MERGED:
            return ConfigError(
                f"{named}: the adapter of {feature!r} cannot be merged into its encoder, so the run serves predict alone; train "
                "it with one that can be, such as lora"
            )
        if not (run / SUMMARY).is_file():
            return ConfigError(f"{named}: {run} is not finished; go on with: cachestore train --resume {run}")
        return DamageError(f"{named}: {folder(run, feature)} is not there any more; restore it, or train again")
    if not there:
        return ConfigError(f"{named}: {run} is not a finished run that trained an encoder")
    trained = ", ".join(there)
    if not feature:
        return ConfigError(f"{named}: name the feature after #; the run trained {trained}")
    return ConfigError(
        f"{named}: the run trained no encoder of {feature!r}{nearest(feature, there) or f'; it trained {trained}'}"
    )


def _kind(config: Path) -> str:
    try:
        return str(json.loads(config.read_bytes())["peft_type"]).lower()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{config} cannot be read ({error}); restore it, or train again") from error


def _quoted(feature: str) -> str:
    # a name may hold slashes, or be no more than dots; letters stay, for a name of a file holds 255 bytes
    return re.sub(r"[\x00-\x1f\x7f%./\\]", lambda found: f"%{ord(found[0]):02X}", feature)
