"""The JSON Schema of a config as users write it: short forms, types left out, the ``defaults`` and ``hyperopt`` sections included.

Made from the classes that read a config, so that a new setting is in it by itself. Ludwig's older forms, which are read too, are not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cachestore.encoders.spec import AnySettings, HashingSettings, ImportedSettings
from trainer import faults
from trainer.feature_sections import SHARED, SIDES
from trainer.schema import Config
from trainer.schema.adapters import PEFT_NAMES, Adapter
from trainer.schema.hyperopt import Hyperopt
from trainer.schema.inputs import EncodedInput
from trainer.schema.tuning import Tuning

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_NULL: Final = {"type": "null"}
_INNER_DEFAULTS: Final = {"split": "random"}  # of sections that are absent, and not of a type, when nothing is written
_NAMED: Final = {"type": "string", "pattern": "#"}  # RUN#FEATURE, an encoder that a run has trained
_REFERENCES: Final = (_NAMED, {"type": "object", "properties": {"type": _NAMED}, "required": ["type"]})
_FROZEN: Final = {"trainable": {"enum": [False, None]}, "adapter": _NULL}  # of encoders without weights


def config_schema() -> dict[str, Any]:
    """A JSON Schema for editors, of draft 2020-12, of what ``train`` and ``sweep`` read: the latter alone takes ``hyperopt``."""
    schema = Config.model_json_schema()
    sweep = Hyperopt.model_json_schema()
    definitions = schema["$defs"]
    definitions |= {**sweep.pop("$defs"), Hyperopt.__name__: sweep}
    tuning = definitions.pop(Tuning.__name__)["properties"]
    for settings in faults.classes(EncodedInput):
        del definitions[settings.__name__]["properties"]["tuning"]
    for settings in faults.classes(AnySettings):
        if settings.__name__ in definitions:
            keys = _FROZEN if settings in (HashingSettings, ImportedSettings) else tuning
            definitions[settings.__name__]["properties"].update(copy.deepcopy(keys))
    for adapter in faults.classes(Adapter):
        properties = definitions[adapter.__name__]["properties"]
        (kind,) = faults.tags(adapter)
        properties.update({name: properties[own] for name, own in PEFT_NAMES.get(kind, {}).items()})
    definitions["ImportedSettings"]["properties"]["spec"] = {"anyOf": [{"type": "object"}, {"type": "string"}]}
    for node in [schema, *definitions.values()]:
        node.pop("title", None)
        for name, value in node.get("properties", {}).items():
            node["properties"][name] = _written(name, value, definitions)
    for side in SIDES:
        features = schema["properties"][side]
        features["items"] = {"anyOf": [_typed(member) for member in _members(features["items"])]}
        for member in _members(features["items"]):
            definition = definitions[_name(member)]
            definition["required"] = ["name"]  # defaults may give the rest
    for settings in faults.classes(EncodedInput):
        definitions[settings.__name__]["properties"]["encoder"]["anyOf"] += _REFERENCES
    schema["properties"]["defaults"] = _defaults(definitions)
    spaces = [_typed(member, "space") for member in _members(sweep["properties"]["parameters"]["additionalProperties"])]
    sweep["properties"]["parameters"] = {
        "anyOf": [
            {"type": "object", "additionalProperties": {"anyOf": [{"type": "array", "minItems": 1}, *spaces]}},
            _NULL,
        ]
    }
    schema["properties"]["hyperopt"] = {"anyOf": [{"$ref": f"#/$defs/{Hyperopt.__name__}"}, _NULL]}
    return {"$schema": _DIALECT, "title": "A config of cachestore", **schema}


def _written(name: str, value: dict[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """A property as it may be written: a section also as its type alone, without its type where there is a default, or empty."""
    value.pop("title", None)
    members = [member for member in _members(value) if _tags(member, definitions)]
    if not members:
        sections = [member for member in _members(value) if "$ref" in member]
        return {"anyOf": [*_members(value), _NULL], **_told(value)} if sections else value
    default = value.get("default")
    usual = default.get("type") if isinstance(default, Mapping) else _INNER_DEFAULTS.get(name)
    untyped = len(members) == 1 or usual is not None
    options = [
        member if untyped and (len(members) == 1 or usual in _tags(member, definitions)) else _typed(member)
        for member in members
    ]
    tags = [tag for member in members for tag in _tags(member, definitions)]
    return {"anyOf": [*options, {"enum": tags}, _NULL], **_told(value)}


def _defaults(definitions: Mapping[str, Any]) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {}
    for side, annotation in SIDES.items():
        for settings in faults.classes(annotation):
            properties = definitions[settings.__name__]["properties"]
            for kind in faults.tags(settings):
                shared = {key: properties[key] for key in SHARED[side] if key in properties}
                kinds.setdefault(kind, {}).update(
                    {key: value for key, value in shared.items() if key not in kinds[kind]}
                )
    entries = {
        kind: {"anyOf": [{"type": "object", "properties": sections, "additionalProperties": False}, _NULL]}
        for kind, sections in kinds.items()
    }
    return {
        "description": "Settings for every feature of a type, under its own.",
        "anyOf": [{"type": "object", "properties": entries, "additionalProperties": False}, _NULL],
    }


def _told(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value[key] for key in ("default", "description") if key in value}


def _members(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options of a property, through unions within it; itself when it is none."""
    for key in ("oneOf", "anyOf"):
        if key in value:
            return [member for option in value[key] for member in _members(option)]
    if "allOf" in value and "$ref" in value["allOf"][0]:
        return [value["allOf"][0]]
    return [{key: item for key, item in value.items() if key not in ("default", "description", "discriminator")}]


def _tags(member: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    """The types of a section that has one."""
    if "$ref" not in member:
        return []
    kind = definitions[_name(member)].get("properties", {}).get("type", {})
    return [kind["const"]] if "const" in kind else list(kind.get("enum", ()))


def _name(member: Mapping[str, Any]) -> str:
    (reference,) = _references(member)
    return reference.rpartition("/")[2]


def _references(member: Mapping[str, Any]) -> Iterator[str]:
    if "$ref" in member:
        yield member["$ref"]
    for part in member.get("allOf", ()):
        yield from _references(part)


def _typed(member: Mapping[str, Any], key: str = "type") -> dict[str, Any]:
    """An option that is only meant when its type is written."""
    return {"allOf": [member, {"required": [key]}]}
