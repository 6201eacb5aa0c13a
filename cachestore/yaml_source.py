"""YAML text → plain mappings, and back. Safe: only plain values, no repeated keys, bounded size, depth and aliases.

Scalars follow YAML 1.2 where PyYAML follows 1.1, so ``1e-3`` is a number, ``010`` ten, ``yes`` and ``12:30`` text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from cachestore.errors import ConfigError, UsageError

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 50
MAX_NODES: Final = 50_000  # with every alias counted as the nodes it stands for

_TAG: Final = "tag:yaml.org,2002:"
_BOOL: Final = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT: Final = re.compile(r"^[-+]?[0-9]{1,18}$")
_FLOAT: Final = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_NULL: Final = re.compile(r"^(?:~|null|Null|NULL|)$")


class _Loader(yaml.CSafeLoader):
    """Used for its nodes alone: they are turned to values below, not by PyYAML's constructors."""


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(_TAG + "bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(_TAG + "null", _NULL, ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "merge", re.compile(r"^<<$"), ["<"])


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or this reader would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Everything in full: anchors in a resolved config would only puzzle."""
        return True


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # other quotes would fold these line breaks of Unicode into spaces
    style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _write_text)
_Dumper.add_implicit_resolver(_TAG + "float", _FLOAT, list("-+.0123456789"))
_Dumper.add_implicit_resolver(_TAG + "int", _INT, list("-+0123456789"))


def read(
    path: Path, what: str = "config", needs: tuple[str, ...] = ("input_features", "output_features")
) -> dict[str, Any]:
    """The mapping in a YAML file; ``what`` it is and which keys it ``needs`` are told in messages, not checked.

    Raises UsageError for a file that cannot be read, ConfigError with the line for text that is no such mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path}: the {what} cannot be read: {(error.strerror or str(error)).lower()}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: the {what} is larger than {MAX_BYTES >> 20} MiB; is it the data file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: the {what} is not UTF-8 text; save it as UTF-8") from error
    value = parse(text, str(path))
    if value is None:
        raise ConfigError(f"{path}: the {what} is empty; it needs {' and '.join(needs)}")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: the {what} must be a mapping ({needs[0]}: …), not {shown(value)}")
    return value


def parse(text: str, where: str) -> Any:
    """The value of one YAML document: None, bool, int, float, str, list or dict with text keys.

    Raises ConfigError that starts with ``where`` and the line.
    """
    try:
        _check_size(text, where)
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _value(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{where}{line}: {_reason(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error


def dump(value: Any) -> str:
    """YAML text that ``parse`` and any YAML 1.1 reader take for the same value."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML writes it, in one line, cut when long."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "…")
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not YAML"
    return f"{problem} ({error.context})" if error.context else problem


def _value(node: yaml.Node) -> Any:
    kind = node.tag.removeprefix(_TAG)
    match node:
        case yaml.ScalarNode() if kind == "str":
            return node.value
        case yaml.ScalarNode() if kind == "null":
            return None
        case yaml.ScalarNode() if kind == "bool" and _BOOL.match(node.value):
            return node.value.lower() == "true"
        case yaml.ScalarNode() if kind in ("int", "float") and _INT.match(node.value):
            return int(node.value)
        case yaml.ScalarNode() if kind in ("int", "float") and _FLOAT.match(node.value):
            return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case yaml.SequenceNode() if kind == "seq":
            return [_value(item) for item in node.value]
        case yaml.MappingNode() if kind == "map":
            return _mapping(node)
    tag = "!!" + kind if node.tag.startswith(_TAG) else node.tag
    raise _refuse(f"the tag {tag!r} is not allowed here; only plain values are", node)


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    """Keys are text as written: classes named 0, 1 or true are named so in ``class_weights``."""
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == _TAG + "merge":
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise _refuse("<< takes a mapping or a list of mappings", value)
                merged = _mapping(source) | merged
        elif not isinstance(key, yaml.ScalarNode):
            raise _refuse("a key must be text", key)
        elif key.value in own:
            raise _refuse(f"the key {key.value!r} stands twice in one mapping", key)
        else:
            own[key.value] = _value(value)
    return merged | own


def _refuse(why: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=why, problem_mark=node.start_mark)


def _check_size(text: str, where: str) -> None:
    """Walks the events, which are made one by one, before anything nested is built from them."""
    sizes: dict[str, int] = {}  # anchor → nodes it stands for
    open_: list[tuple[str | None, int]] = []  # (anchor, nodes counted before it)
    nodes = documents = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        mark = event.start_mark
        line = where if mark is None else f"{where}, line {mark.line + 1}"
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfigError(f"{line}: a second document begins; a config is one")
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ConfigError(f"{line}: the alias *{event.anchor} stands for nothing before it")
            nodes += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            open_.append((event.anchor, nodes))
            nodes += 1
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            anchor, before = open_.pop()
            if anchor:
                sizes[anchor] = nodes - before
        if len(open_) > MAX_DEPTH:
            raise ConfigError(f"{line}: nested deeper than {MAX_DEPTH} levels")
        if nodes > MAX_NODES:
            raise ConfigError(f"{line}: more than {MAX_NODES} values, aliases counted in full")
