"""pydantic's errors → faults as a reader of the YAML wants them: where, what is wrong, what would be right."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from cachestore.errors import nearest
from cachestore.yaml_source import shown
from trainer import ludwig
from trainer.frozen import keys_of

Path: TypeAlias = tuple[str | int, ...]

# What a section takes besides its own keys: Ludwig's places of settings that stand elsewhere here.
_READ_TOO: Final = {"trainer": ("strategy", "num_workers", "cpu_offload")}
_WANTED: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "not empty",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "is_instance_of": "a mapping",
}


@dataclass(frozen=True)
class Fault:
    """``path`` begins where the validated data does."""

    path: Path
    why: str


def describe(error: ValidationError, model: Any, data: Any, section: str) -> list[Fault]:
    """One fault per place of ``data`` that failed as ``model``, a class or a union of them.

    ``section`` is the place of ``data`` in a config, without feature names, as in ``trainer.ludwig``.
    """
    grouped: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        if detail["type"] != "default_factory_not_called":  # column, for want of a name: said already
            grouped.setdefault(_place(detail, data), []).append(detail)
    within = {path[:depth] for path in grouped for depth in range(len(path))}
    return [
        _fault(path, details, model, data, section)
        for path, details in grouped.items()
        # a form that the value has not, beside what is wrong inside the form that it has
        if path not in within or any(not detail["type"].endswith("_type") for detail in details)
    ]


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def validated(model: Any, value: Any, section: str) -> tuple[Any, list[Fault]]:
    """``value`` as ``model``, a class or a union of them, or None and what is wrong with it."""
    value = _tuples(value)
    try:
        return _adapter(model).validate_python(value), []
    except ValidationError as error:
        found = describe(error, model, value, section)
        wrong = {
            _place(detail, value)[:-1]: detail for detail in error.errors() if detail["type"].startswith("union_tag")
        }
    for path in wrong:
        found += _behind(path, found, model, value, section)
    return None, found


def _behind(path: Path, found: list[Fault], model: Any, value: Any, section: str) -> list[Fault]:
    """What else is wrong at ``path``, where the type is none there is: read as the nearest type, or as any."""
    _, annotation = _owner(model, path, value)
    here = _value_at(value, path)
    if near := closest(str(here.get("type")), tags(annotation)):
        _, more = validated(model, _with(value, path, {**here, "type": near}), section)
        known = {fault.path for fault in found}
        return [fault for fault in more if fault.path not in known]
    keys = list(dict.fromkeys(key for option in classes(annotation) for key in keys_of(option)))
    inside = ".".join([*section.split("."), *(str(part) for part in path if isinstance(part, str))]).strip(".")
    return [Fault((*path, key), unknown_key(inside, key, keys)) for key in here if key not in keys]


def _with(value: Any, path: Path, new: Any) -> Any:
    """``value`` with ``new`` at ``path``."""
    if not path:
        return new
    if isinstance(value, tuple):
        return tuple(_with(item, path[1:], new) if index == path[0] else item for index, item in enumerate(value))
    return {**value, path[0]: _with(value[path[0]], path[1:], new)}


def with_type(value: Any, default: str | None = None) -> Any:
    """``encoder: minilm`` is ``encoder: {type: minilm}``; a mapping without a type gets the default."""
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, Mapping) and default is not None:
        return {"type": default, **value}
    return value


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def closest(word: str, choices: Sequence[str]) -> str | None:
    """The choice that was probably meant."""
    return next(iter(difflib.get_close_matches(word, choices, n=1, cutoff=0.6)), None)


def place_of(side: str, index: int, feature: Mapping[str, Any]) -> str:
    """How to name a feature: by its name, or by its place from 0 where it has none."""
    name = feature.get("name")
    return f"{side}.{name}" if isinstance(name, str) and name else f"{side}[{index}]"


def joined(path: Path) -> str:
    """``a.b[0].c``"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _place(detail: ErrorDetails, data: Any) -> Path:
    path: list[str | int] = []
    value = data
    for part in detail["loc"]:
        if _has(value, part):
            value = value[part]
        elif not (detail["type"] == "missing" and part is detail["loc"][-1] and isinstance(part, str)):
            continue  # the name of a union's member, or an item that a list is short of: no place of its own
        path.append(part)
    if detail["type"].startswith("union_tag"):
        path.append("type")
    return tuple(path)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, tuple) and isinstance(part, int) and part < len(value)


def _fault(path: Path, details: list[ErrorDetails], model: Any, data: Any, section: str) -> Fault:
    owner, annotation = _owner(model, path, data)
    here = ".".join([*section.split("."), *(str(part) for part in path if isinstance(part, str))]).lstrip(".")
    first = details[0]
    if first["type"] == "extra_forbidden":
        return Fault(
            path,
            unknown_key(here[: -len(str(path[-1]))].rstrip("."), str(path[-1]), keys_of(owner) if owner else ()),
        )
    if first["type"] == "missing" and isinstance(first["loc"][-1], str):
        return Fault(path, "is missing")
    if first["type"] == "union_tag_not_found":
        return Fault(path, "is missing; " + _choices(tags(annotation)))
    given = _value_at(data, path)
    if first["type"] == "union_tag_invalid":
        return Fault(path, no_such_value(here, given, tags(annotation)))
    wanted: list[str] = []
    for detail in details:
        if detail["type"] == "literal_error":
            choices = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
            if choices and isinstance(given, str) and len(details) == 1:
                return Fault(path, no_such_value(here, given, choices, null=type(None) in get_args(annotation)))
            wanted.append(detail["ctx"]["expected"])
        elif detail["type"] in _WANTED:
            wanted.append(_WANTED[detail["type"]].format(**detail.get("ctx", {})))
        elif detail["type"] in ("missing", "too_long", "too_short"):
            wanted.append(f"a list of {len(get_args(annotation))}")
        elif detail["type"] == "value_error":
            return Fault(path, str(detail["ctx"]["error"]))
        else:
            return Fault(path, detail["msg"])
    if type(None) in get_args(annotation):
        wanted.append("null")
    return Fault(path, f"must be {' or '.join(dict.fromkeys(wanted))}, not {shown(given)}")


def unknown_key(section: str, key: str, keys: Iterable[str]) -> str:
    """What to say of a key that ``section`` has not: Ludwig's, or nearly one of ``keys``, or neither."""
    known = ludwig.KEYS.get(section, {})
    if key in known:
        return known[key]
    names = [*keys, *_READ_TOO.get(section, ())]
    return "unknown key" + (nearest(key, names) or (f"; the keys here are {', '.join(names)}" if names else ""))


def no_such_value(setting: str, given: Any, choices: Sequence[str], *, null: bool = False) -> str:
    """What to say of a value that is none of ``choices``; ``setting`` is its path without feature names."""
    allowed = _choices(choices, null=null)
    if isinstance(given, str) and (setting, given) in ludwig.INSTEAD:
        return f"{given!r} {ludwig.INSTEAD[setting, given]}; {allowed}"
    if isinstance(given, str) and given in ludwig.VALUES.get(setting, ()):
        return f"{given!r} is not supported yet; {allowed}"
    hint = nearest(given, choices) if isinstance(given, str) else ""
    return f"there is no {shown(given)}{hint.rstrip('?')}{'? (' + allowed + ')' if hint else '; ' + allowed}"


def _choices(choices: Sequence[str], *, null: bool = False) -> str:
    return ("choose one of " if len(choices) + null > 1 else "the only choice is ") + ", ".join(
        [*choices, *(["null"] if null else [])]
    )


def _owner(model: Any, path: Path, data: Any) -> tuple[type[BaseModel] | None, Any]:
    """The class that has, or lacks, the last key of ``path``, and the annotation of the value there."""
    owner: type[BaseModel] | None = None
    annotation, value = model, data
    for part in path:
        if isinstance(part, int):
            annotation, value = _item(annotation, part), value[part]
            continue
        owner = _chosen(annotation, value)
        if part == "type" and len(classes(annotation)) > 1:
            break  # the choice itself: the union stays the annotation
        field = owner.model_fields.get(part) if owner is not None else None
        annotation = field.annotation if field is not None else Any
        value = value.get(part) if isinstance(value, Mapping) else None
    return owner, annotation


def _item(annotation: Any, index: int) -> Any:
    """The annotation of an item of a tuple, or of a union that has one."""
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    inner = next((get_args(option) for option in options if get_origin(option) is tuple), ())
    return inner[0 if inner[-1] is Ellipsis else index] if inner else Any


def classes(annotation: Any) -> list[type[BaseModel]]:
    """The classes of a union, in order."""
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [found for item in get_args(annotation) for found in classes(item)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _chosen(annotation: Any, value: Any) -> type[BaseModel] | None:
    candidates = classes(annotation)
    if len(candidates) == 1:
        return candidates[0]
    tag = value.get("type") if isinstance(value, Mapping) else None
    return next((found for found in candidates if tag in tags(found)), None)


def tags(annotation: Any) -> list[str]:
    """The values ``type`` may have in a class, or in any class of a union."""
    return [tag for found in classes(annotation) for tag in get_args(found.model_fields["type"].annotation)]


def _value_at(data: Any, path: Path) -> Any:
    for part in path:
        data = data[part]
    return data
