"""Explain: counts as the build that follows, and the nearest stored encoder with what differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cachestore import open_store
from cachestore.build import run
from cachestore.errors import ColumnNotFound
from cachestore.explain import explain
from cachestore.plan import plan
from tests.store import tiny_models
from tests.store.counting import CountingEncoder

DATA = {"text": ["a", "b", "a", None, "new", "new", "old"], "title": ["a", "x", "new", "x", "b", "y", None]}


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "store") as opened:
        yield opened


def changes(column):
    return [(change.field, change.old, change.new) for change in column.nearest.changes]


def test_all_is_new_without_a_store():
    found = explain(None, DATA, {"text": CountingEncoder()})
    (column,) = found.columns
    cells = column.cells
    assert (found.rows, found.to_encode, column.vectors, column.nearest) == (7, 4, 0, None)
    assert (cells.hits, cells.new, cells.repeats, cells.missing, cells.skipped) == (0, 4, 2, 1, 0)


def test_nothing_is_to_be_encoded_where_all_is_stored(store):
    run(store, DATA, {"text": CountingEncoder()})
    found = explain(store, DATA, {"text": CountingEncoder()})
    assert (found.to_encode, found.columns[0].cells.hits, found.columns[0].nearest) == (0, 6, None)
    assert found.columns[0].vectors == 4


def test_counts_are_those_of_the_plan_and_of_the_build(store):
    run(store, {"text": ["a", "old"]}, {"text": CountingEncoder()})
    columns = {"text": CountingEncoder(), "title": CountingEncoder()}
    found = explain(store, DATA, columns)
    planned = plan(store, DATA, columns).counts
    built = run(store, DATA, columns).counts
    for counts in (planned, built):
        assert counts.rows == found.rows
        assert counts.encoded == found.to_encode == 4
        assert counts.duplicates == sum(column.cells.repeats for column in found.columns)
        assert counts.hits == sum(column.cells.hits for column in found.columns)
        assert counts.missing == sum(column.cells.missing for column in found.columns) == 2
    # b, new of text; x, y of title, whose b and new text has before it
    assert [column.cells.new for column in found.columns] == [2, 2]


def test_the_nearest_encoder_differs_least_and_says_how_many_of_the_texts_it_has(store):
    run(store, {"text": ["a", "b"]}, {"text": CountingEncoder(pooling="mean", files={"a": "1", "b": "2"})}, name="near")
    run(store, {"text": ["a", "b", "new"]}, {"text": CountingEncoder(pooling="mean", files={"c": "1"})}, name="far")
    (column,) = explain(store, DATA, {"text": CountingEncoder(pooling="max", files={"a": "1", "b": "3"})}).columns
    assert changes(column) == [("files.b", "2", "3"), ("pooling", "mean", "max")]
    assert column.nearest.encoder.names == ("near",)
    assert (column.nearest.encoder.vectors, column.nearest.texts, column.cells.new) == (2, 2, 4)


def test_the_same_kind_is_nearer_than_fewer_differences(store):
    run(store, {"text": ["a"]}, {"text": {"type": "hashing", "dim": 8}}, name="hashing")
    run(store, {"text": ["a"]}, {"text": CountingEncoder(**dict.fromkeys("abcdefgh", 1))}, name="counting")
    (column,) = explain(store, DATA, {"text": {"type": "hashing", "dim": 9, "lowercase": False}}).columns
    assert changes(column) == [("dim", 8, 9), ("lowercase", True, False)]
    (column,) = explain(store, DATA, {"text": CountingEncoder()}).columns
    assert column.nearest.encoder.names == ("counting",)


def test_an_encoder_whose_vectors_are_stored_in_part_shows_another_one_too(store):
    run(store, {"text": ["a"]}, {"text": CountingEncoder()}, name="own")
    run(store, {"text": ["a", "b", "new", "old"]}, {"text": CountingEncoder(pooling="max")}, name="other")
    (column,) = explain(store, DATA, {"text": CountingEncoder()}).columns
    assert (column.vectors, column.cells.hits, column.cells.new) == (1, 2, 3)
    assert changes(column) == [("pooling", "max", None)]
    assert column.nearest.texts == 3


def test_a_changed_weight_and_tokenizer_are_named_and_no_model_is_loaded(store, tmp_path):
    model = tiny_models.save(tmp_path / "bert")
    encoder = {"type": "auto_transformer", "pretrained_model_name_or_path": str(model), "precision": "float32"}
    run(store, {"text": ["a"]}, {"text": encoder}, name="tiny")
    weights = Path(model) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    tiny_models.edit_json(model / "tokenizer.json", normalizer=None)
    (column,) = explain(store, DATA, {"text": {**encoder, "precision": "auto"}}).columns
    assert [change.field for change in column.nearest.changes] == ["tokenizer.tokenizer.json", "weights"]


def test_nothing_is_written(store):
    run(store, {"text": ["a"]}, {"text": CountingEncoder()}, name="own")
    encoder = CountingEncoder()
    before = sorted((path, path.stat().st_mtime_ns) for path in store.root.rglob("*") if "lock" not in path.name)
    with open_store(store.root, mode="r") as opened:
        explain(opened, DATA, {"text": encoder})
    assert before == sorted(
        (path, path.stat().st_mtime_ns) for path in store.root.rglob("*") if "lock" not in path.name
    )
    assert encoder.seen == []


def test_a_column_that_is_not_there_is_named(store):
    with pytest.raises(ColumnNotFound, match="txet"):
        explain(store, DATA, {"txet": CountingEncoder()})
