"""The features of a config: types' defaults put under them, short forms written out, checked one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from cachestore.encoders import template_of
from cachestore.encoders.image_settings import TorchvisionSettings
from cachestore.encoders.spec import TYPES as ENCODER_TYPES
from cachestore.encoders.spec import HashingSettings, parse_settings
from cachestore.errors import ConfigError, nearest
from cachestore.sources import fields
from cachestore.yaml_source import shown
from trainer import faults, tunings
from trainer.faults import Fault
from trainer.schema.inputs import EncodedInput, ImageEncoder, InputFeature, TextEncoder
from trainer.schema.outputs import OutputFeature
from trainer.schema.tuning import Tuning

Side: TypeAlias = Literal["input_features", "output_features"]

SIDES: Final[Mapping[Side, Any]] = {"input_features": InputFeature, "output_features": OutputFeature}
SHARED: Final[Mapping[Side, tuple[str, ...]]] = {  # the sections that `defaults` may hold, as in Ludwig
    "input_features": ("encoder", "preprocessing"),
    "output_features": ("decoder", "loss"),
}
_IDENTITY: Final = ("name", "type", "column")
_TYPE: Final = ("encoder", "type")
_STORED: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {  # how a feature's encoder may be written, and its types
    "text": ("minilm", tuple(faults.tags(TextEncoder))),
    "image": ("resnet", tuple(faults.tags(ImageEncoder))),
}


@dataclass(frozen=True)
class Entry:
    """One feature: where it stands, name, type and column as written where they are text, and its class unless it has faults.

    ``reads``: the columns it needs, as far as they can be told.
    """

    place: str
    name: str | None
    kind: str | None
    column: str | None
    reads: tuple[str, ...]
    feature: Any


def check_defaults(value: Any, found: list[str]) -> dict[str, dict[str, Any]]:
    """The ``defaults`` section, type → section → settings, without what has no place in it."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        found.append(f"defaults: must be a mapping of feature types, not {shown(value)}")
        return {}
    allowed = {kind: list(_shared_sections(kind)) for kind in _kinds()}
    defaults: dict[str, dict[str, Any]] = {}
    for kind, sections in value.items():
        if kind not in allowed:
            found.append(f"defaults.{kind}: {faults.no_such_value('input_features.type', kind, list(allowed))}")
        elif sections is not None and not isinstance(sections, Mapping):
            found.append(f"defaults.{kind}: must be a mapping of {', '.join(allowed[kind])}, not {shown(sections)}")
        elif sections is not None:
            found.extend(
                f"defaults.{kind}.{key}: {faults.unknown_key('defaults', key, allowed[kind])}"
                for key in sections
                if key not in allowed[kind]
            )
            defaults[kind] = {key: item for key, item in sections.items() if key in allowed[kind] and item is not None}
    return defaults


def read_features(side: Side, value: Any, defaults: Mapping[str, Mapping[str, Any]], found: list[str]) -> list[Entry]:
    """Every active feature of one side. Inactive ones are checked as well, and what ``defaults`` gives to types of no feature."""
    if value is None or value == []:
        found.append(f"{side}: is missing; a config needs at least one, a mapping with a name and a type")
    elif not isinstance(value, list):
        found.append(f"{side}: must be a list of features, each a mapping with a name and a type, not {shown(value)}")
    entries: list[Entry] = []
    for index, item in enumerate(value if isinstance(value, list) else []):
        if not isinstance(item, Mapping):
            found.append(f"{side}[{index}]: must be a mapping with a name and a type, not {shown(item)}")
            continue
        name, kind, column = (text if isinstance(text, str) and text else None for text in map(item.get, _IDENTITY))
        place = faults.place_of(side, index, item)
        default = defaults.get(str(item.get("type")), {})
        feature = _read_feature(side, place, item, default, found)
        reads = _reads(column or name, item.get("encoder"), feature)
        entries.append(Entry(place, name, kind, column or name, reads, feature))
    used = {item.get("type") for item in value if isinstance(item, Mapping)} if isinstance(value, list) else set()
    for kind, default in defaults.items():
        if kind not in used and any(key in default for key in SHARED[side]) and kind in _kinds(side):
            _read_feature(side, f"defaults.{kind}", {"name": "any", "type": kind}, default, found)
    active = [entry for entry in entries if getattr(entry.feature, "active", True)]
    if entries and not active:
        found.append(f"{side}: no feature is active; a config needs at least one")
    return active


def _reads(column: str | None, encoder: Any, feature: Any) -> tuple[str, ...]:
    if feature is None:
        unclear = isinstance(encoder, Mapping) and isinstance(encoder.get("prompt"), Mapping)
        return () if unclear or column is None else (column,)
    template = template_of(feature.encoder) if isinstance(feature, EncodedInput) else None
    return (feature.column,) if template is None else tuple(fields(template))


def _read_feature(side: Side, place: str, item: Mapping[str, Any], default: Mapping[str, Any], found: list[str]) -> Any:
    settings = _under(side, item, {key: section for key, section in default.items() if key in SHARED[side]})
    faulty: list[Fault] = []
    kind = str(item.get("type"))
    if kind not in _kinds(side) and (near := faults.closest(kind, _kinds(side))):
        found.append(f"{place}.type: {faults.no_such_value(f'{side}.type', kind, _kinds(side))}")
        _read_feature(side, place, {**item, "type": near}, default, found)
        return None
    if side == "input_features" and kind in _STORED:
        required = not place.startswith("defaults.")
        if "tuning" in item:
            faulty.append(Fault(("tuning",), faults.unknown_key(side, "tuning", ())))
        settings["encoder"], settings["tuning"] = tunings.apart(settings.get("encoder"), faulty)
        settings["encoder"] = _encoder(kind, settings["encoder"], faulty, required=required)
    feature, more = faults.validated(SIDES[side], settings, side)
    more = [replace(each, path=("encoder", *each.path[1:])) if each.path[:1] == ("tuning",) else each for each in more]
    if isinstance(feature, EncodedInput) and not any(fault.path[:1] == ("encoder",) for fault in faulty):
        more += tunings.check(feature)
    for fault in [*faulty, *more]:
        own = _holds(item, fault.path) or not _holds(default, fault.path)
        where = place if own else f"defaults.{item['type']}"
        found.append(f"{where}{'.' if fault.path else ''}{faults.joined(fault.path)}: {fault.why}")
    return None if faulty or more else feature


def _under(side: Side, item: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """The feature with the default sections under its own; a section of another type takes nothing from its default."""
    kind = str(item.get("type"))
    merged = {key: value for key, value in item.items() if value is not None or key in ("name", "type", "column")}
    for key, section in default.items():
        own, shared = faults.with_type(merged.get(key, {})), faults.with_type(section, _default_type(side, kind, key))
        if not isinstance(own, Mapping) or not isinstance(shared, Mapping):
            merged.setdefault(key, shared)
        elif "type" not in own or own["type"] == shared.get("type", own["type"]):
            merged[key] = {**shared, **own}
    for key in ("encoder", "decoder", "loss"):
        if key in merged and not (key == "encoder" and kind in _STORED):
            merged[key] = faults.with_type(merged[key], _default_type(side, kind, key))
    if merged.get("column", "") is None:
        del merged["column"]
    return merged


def _default_type(side: Side, kind: str, key: str) -> str | None:
    """The type of a section that names none; None where it must."""
    for option in faults.classes(SIDES[side]):
        if kind in faults.tags(option) and key in option.model_fields:
            default: str | None = getattr(option.model_fields[key].default, "type", None)
            return default
    return None


def _encoder(kind: str, value: Any, faulty: list[Fault], *, required: bool) -> Any:
    """The settings of a text or image feature's encoder; a stand-in after faults, so that the rest is checked too."""
    stand_in = HashingSettings() if kind == "text" else TorchvisionSettings(type="resnet")
    example, types = _STORED[kind]
    if value is None:
        if required:
            a = "an" if kind == "image" else "a"
            why = f"is missing; {a} {kind} feature needs one: encoder: {example}, or one of {', '.join(types)}"
            faulty.append(Fault(("encoder",), why))
        return stand_in
    value = faults.with_type(value)
    if isinstance(value, Mapping):
        value = {
            key: item
            for key, item in value.items()
            if not (kind == "text" and key == "use_pretrained" and item is True)
        }
    parsed, wrong = _parsed(value, types)
    written = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and any(fault.path == _TYPE for fault in wrong):
        if near := faults.closest(str(written), types):
            wrong += [fault for fault in _parsed({**value, "type": near}, types)[1] if fault.path != _TYPE]
    elif parsed is not None and parsed.type not in types:
        other = "images" if kind == "text" else "text"
        wrong.append(Fault(_TYPE, f"{written!r} is an encoder of {other}; choose one of {', '.join(types)}"))
    faulty += wrong
    return stand_in if wrong else parsed


def _parsed(value: Any, types: tuple[str, ...]) -> tuple[Any, list[Fault]]:
    try:
        return parse_settings(value), []
    except ConfigError as error:
        wrong = []
        for line in str(error).splitlines():
            path, _, why = line.partition(": ")
            why = why.replace(", ".join(ENCODER_TYPES), ", ".join(types))
            if why == "unknown key":
                why += nearest(path.rpartition(".")[2], Tuning.model_fields)
            wrong.append(Fault(tuple(path.split(".")), why))
        return None, wrong


def _holds(settings: Any, path: faults.Path) -> bool:
    """Whether the place of a fault is in ``settings`` as written."""
    for part in path:
        if not isinstance(settings, Mapping):
            return not isinstance(part, str) or settings is not None
        if part not in settings:
            return False
        settings = settings[part]
    return True


def _kinds(side: Side | None = None) -> list[str]:
    sides: tuple[Side, ...] = ("input_features", "output_features") if side is None else (side,)
    return list(dict.fromkeys(tag for each in sides for tag in faults.tags(SIDES[each])))


def _shared_sections(kind: str) -> Iterator[str]:
    for side, sections in SHARED.items():
        for found in faults.classes(SIDES[side]):
            if kind in faults.tags(found):
                yield from (section for section in sections if section in found.model_fields)
