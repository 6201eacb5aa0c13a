"""The encoder of imported vectors: its settings, its spec, and what it says instead of encoding."""

from __future__ import annotations

import math

import pytest

from cachestore import keys
from cachestore.encoders import ImportedEncoder, ImportedSettings, label, open_encoder, parse_settings
from cachestore.encoders.imported import declare
from cachestore.errors import ConfigError, EncoderError

SPEC = {"model": "api-1", "prompt": {"query": "find: "}, "dim": 4}


def opened(content):
    return open_encoder({"type": "imported", "spec": content})


def test_a_spec_is_declared_in_a_file_or_in_place(tmp_path, monkeypatch):
    (tmp_path / "spec.yaml").write_text("model: api-1\nprompt: {query: 'find: '}\ndim: 4\n")
    monkeypatch.chdir(tmp_path)
    assert parse_settings({"type": "imported", "spec": "spec.yaml"}) == ImportedSettings(spec=SPEC)
    encoder = opened("spec.yaml")
    assert isinstance(encoder, ImportedEncoder)
    assert encoder.dim == 4
    assert encoder.spec == {
        "kind": "imported",
        "declared": {"model": "api-1", "prompt": {"query": "find: "}},
        "dim": 4,
        "dtype": "float16",
    }
    assert label(encoder.spec) == "imported api-1 4→float16"


@pytest.mark.parametrize(
    "change", [{"model": "api-2"}, {"prompt": {}}, {"dim": 5}, {"dtype": "float32"}, {"more": 1}, {"more": True}]
)
def test_every_word_of_a_spec_is_in_the_fingerprint(change):
    assert keys.fingerprint(opened({**SPEC, **change}).spec) != keys.fingerprint(opened(SPEC).spec)


def test_a_declared_copy_of_a_built_in_spec_has_another_fingerprint():
    hashing = open_encoder({"type": "hashing", "dim": 4}).spec
    assert keys.fingerprint(opened(dict(hashing)).spec) != keys.fingerprint(hashing)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"dim": 4}, "must say what the vectors come from"),
        ({"model": "a"}, r"dim: must be the length .* it is missing"),
        ({"model": "a", "dim": "4"}, "dim: must be the length .* not '4'"),
        ({"model": "a", "dim": True}, "dim: "),
        ({"model": "a", "dim": 0}, "dim: "),
        ({"model": "a", "dim": 4, "dtype": "int8"}, "dtype: must be float16 or float32"),
        ({"model": math.nan, "dim": 4}, "model: must be text, a finite number"),
        ({"model": {"deep": [1, b"x"]}, "dim": 4}, r"model\.deep\.1: "),
        ({"model": "\ud800", "dim": 4}, "model: has no UTF-8 form"),
        ({"model": {1: 2}, "dim": 4}, "model: keys are text"),
        ("nowhere.yaml", "encoder.spec: nowhere.yaml: the spec cannot be read"),
        (None, "encoder.spec: must be the path of a YAML file, or the mapping"),
    ],
)
def test_a_faulty_spec_is_told_at_its_place(spec, words):
    with pytest.raises(ConfigError, match=words):
        opened(spec)


def test_a_spec_is_required():
    with pytest.raises(ConfigError, match=r"encoder\.spec: is required"):
        parse_settings("imported")


def test_it_encodes_nothing_and_says_what_is_lacking():
    encoder = opened(SPEC)
    assert encoder.encode([]).shape == (0, 4)
    with pytest.raises(
        EncoderError, match=r"1 text has no imported vector under this spec \(api-1\); the first is 'no'"
    ):
        encoder.encode([b"no"])
    with pytest.raises(EncoderError, match=r"2 texts have .* the first is 'x{59}…'"):
        encoder.encode([b"x" * 100, b"y"])


LABELS = [
    ({"model": "api-1", "prompt": "q: "}, "imported api-1 4→float16"),
    ({"prompt": "q: ", "name": "mine", "model": "api-1"}, "imported mine api-1 4→float16"),
    ({"comment": "a  long\nstory", "type": "openai"}, "imported openai 4→float16"),
    (
        {"version": 3, "vendor": {"id": "x", "tuned": True}},
        "imported version=3 vendor.id=x vendor.tuned=true 4→float16",
    ),
    ({"comment": "so on " * 20}, f"imported {('comment=' + 'so on ' * 20)[:59]}… 4→float16"),
]


@pytest.mark.parametrize(("declared", "shown"), LABELS)
def test_its_label_is_what_was_declared(declared, shown):
    assert label(declare({**declared, "dim": 4})) == shown
