"""YAML: plain values, read as YAML 1.2 has them, and nothing a stranger's file could do harm with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cachestore import yaml_source
from cachestore.errors import ConfigError
from cachestore.yaml_source import dump, parse, read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("+7", 7),
        ("010", 10),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("off", "off"),
        ("True", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("-.inf", -math.inf),
        ("[1, 'a', {b: null}]", [1, "a", {"b": None}]),
        ("{0: a, true: b, 1.0: c}", {"0": "a", "true": "b", "1.0": "c"}),
        ("9" * 30, 1e30),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    parsed = parse(text, "c.yaml")
    assert parsed == value
    assert type(parsed) is type(value)


def test_aliases_and_merges_give_values_of_their_own() -> None:
    value = parse("a: &a {x: [1]}\nb: *a\nc: {<<: *a, y: 2}\nd: {<<: [{x: 3, z: 4}, *a], z: 5}", "c.yaml")
    assert value == {"a": {"x": [1]}, "b": {"x": [1]}, "c": {"x": [1], "y": 2}, "d": {"x": 3, "z": 5}}
    value["b"]["x"].append(2)
    assert value["a"] == {"x": [1]}


BOMB = "\n".join(["a0: &a0 [1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9))])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: [1, 2\nc: 3", "c.yaml, line 3: did not find expected ',' or ']'"),
        ("a: 1\n\tb: 2", "c.yaml, line 2: found a tab character"),
        ("a: 1\nb: 2\na: 3", "c.yaml, line 3: the key 'a' stands twice in one mapping"),
        ("a:\n  b: !!python/object/apply:os.system [x]", "c.yaml, line 2: the tag '!!python/object/apply:os.system'"),
        ("a: !!python/name:os.system ''", "the tag '!!python/name:os.system' is not allowed"),
        ("a: !!binary aGk=", "the tag '!!binary' is not allowed"),
        ("a: !mine 1", "the tag '!mine' is not allowed"),
        ("a: !!int x", "the tag '!!int' is not allowed"),
        ("a: &a [*a]", "the alias *a stands for nothing before it"),
        ("a: *b", "the alias *b stands for nothing before it"),
        ("? [a]\n: 1", "a key must be text"),
        ("a: {<<: 3}", "<< takes a mapping"),
        ("a: 1\n---\nb: 2", "c.yaml, line 2: a second document begins"),
        (BOMB, "aliases counted in full"),
        ("[" * 100_000, "nested deeper than 50 levels"),
        ("a: '\x00'", "control characters are not allowed"),
    ],
    ids=range(16),
)
def test_refusals(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text, "c.yaml")
    assert str(error.value).startswith("c.yaml")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_written_is_read_back(value: Any) -> None:
    assert parse(dump(value), "c.yaml") == value


@pytest.mark.parametrize(
    "text", ["1e-3", "yes", "010", "0o7", "12:30", "null", "<<", "=", "2024-01-01", "1_0", "0x1F", "~"]
)
def test_text_stays_text_for_other_readers_too(text: str) -> None:
    assert parse(dump({"a": text}), "c.yaml") == {"a": text}
    assert yaml.safe_load(dump({"a": text})) == {"a": text}


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes("\ufeffa: é\r\nb: 1\r\n".encode())
    assert read(path) == {"a": "é", "b": 1}
    for content, says in (
        (b"", "the config is empty"),
        (b"# nothing\n", "the config is empty"),
        (b"- a\n- b\n", "must be a mapping (input_features: \u2026), not a list of 2"),
        (b"a: 1\nb: \xff\n", "line 2: the config is not UTF-8 text"),
        (b"a: " + b"x" * yaml_source.MAX_BYTES, "larger than 1 MiB; is it the data file?"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            read(path)
        assert says in str(error.value)
        assert str(path) in str(error.value)
